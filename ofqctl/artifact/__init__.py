"""Files on disk: the only reader and writer of run directories."""

from ofqctl.artifact.config import ForeignConfigError, QuantizationConfig, RunConfig, read_config, sign_config
from ofqctl.artifact.latents import latents_file, read_latents
from ofqctl.artifact.ledger import make_ledger
from ofqctl.artifact.results import read_results
from ofqctl.artifact.run import (
    Download,
    Run,
    digest,
    is_run,
    load_run,
    save_run,
    save_single_file,
    serialize,
    weights_size,
)
from ofqctl.files import WEIGHTS

__all__ = [
    "WEIGHTS",
    "Download",
    "ForeignConfigError",
    "QuantizationConfig",
    "Run",
    "RunConfig",
    "digest",
    "is_run",
    "latents_file",
    "load_run",
    "make_ledger",
    "read_config",
    "read_latents",
    "read_results",
    "save_run",
    "save_single_file",
    "serialize",
    "sign_config",
    "weights_size",
]
