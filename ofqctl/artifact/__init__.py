"""Files on disk: the only reader and writer of run directories."""

from ofqctl.artifact.config import QuantizationConfig, RunConfig, read_config
from ofqctl.artifact.ledger import Ledger, make_ledger
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
from ofqctl.files import WEIGHTS

__all__ = [
    "WEIGHTS",
    "Ledger",
    "QuantizationConfig",
    "Run",
    "RunConfig",
    "digest",
    "is_run",
    "load_run",
    "make_ledger",
    "read_config",
    "read_results",
    "save_run",
    "save_single_file",
    "serialize",
]
