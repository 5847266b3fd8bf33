"""Training: batches, phases of optimization, the loop, its state, one process or many."""

from ofqctl.training.batches import Share, TrainingBatches
from ofqctl.training.engine import Engine, Hooks, Interrupted, Row
from ofqctl.training.processes import Processes, joined
from ofqctl.training.state import FILE, Checkpoint, read_checkpoint_state

__all__ = [
    "FILE",
    "Checkpoint",
    "Engine",
    "Hooks",
    "Interrupted",
    "Processes",
    "Row",
    "Share",
    "TrainingBatches",
    "joined",
    "read_checkpoint_state",
]
