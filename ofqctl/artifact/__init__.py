"""Files on disk: the only reader and writer of run directories."""

from ofqctl.artifact.config import QuantizationConfig, RunConfig, read_config
from ofqctl.artifact.ledger import Ledger, make_ledger
from ofqctl.artifact.output import (
    NEXT_STATE,
    RUN_FILES,
    TRAINING_STATE,
    WEIGHTS,
    is_ours,
    output_directory,
    output_file,
    replaced_file,
    replaced_files,
)
from ofqctl.artifact.run import (
    Run,
    digest,
    is_run,
    load_run,
    read_results,
    save_run,
    save_single_file,
    serialize,
)
from ofqctl.artifact.staging import located

__all__ = [
    "NEXT_STATE",
    "RUN_FILES",
    "TRAINING_STATE",
    "WEIGHTS",
    "Ledger",
    "QuantizationConfig",
    "Run",
    "RunConfig",
    "digest",
    "is_ours",
    "is_run",
    "load_run",
    "located",
    "make_ledger",
    "output_directory",
    "output_file",
    "read_config",
    "read_results",
    "replaced_file",
    "replaced_files",
    "save_run",
    "save_single_file",
    "serialize",
]
