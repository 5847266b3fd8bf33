"""Every output, files and run directories: checked ahead, written whole, and nothing of others replaced."""

from ofqctl.files.output import (
    LATENTS,
    NEXT_STATE,
    RUN_FILES,
    TRACKER_FILE,
    TRAINING_STATE,
    WEIGHTS,
    Kind,
    is_empty,
    is_ours,
    live_file,
    output_directory,
    output_file,
    replaced_file,
    replaced_files,
)
from ofqctl.files.staging import located, only_one, sweep

__all__ = [
    "LATENTS",
    "NEXT_STATE",
    "RUN_FILES",
    "TRACKER_FILE",
    "TRAINING_STATE",
    "WEIGHTS",
    "Kind",
    "is_empty",
    "is_ours",
    "live_file",
    "located",
    "only_one",
    "output_directory",
    "output_file",
    "replaced_file",
    "replaced_files",
    "sweep",
]
