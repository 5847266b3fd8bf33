"""Training: batches, optimization in phases, the training loop and its state, in one process or several."""

from ofqctl.training.batches import SameBatch, Share, TrainingBatches
from ofqctl.training.engine import Engine, Hooks, Row
from ofqctl.training.interruption import Interrupted
from ofqctl.training.logs import LogName, Logs, check_logs, open_logs
from ofqctl.training.objective import check_objective, needs_labels
from ofqctl.training.optimization import warmup_steps
from ofqctl.training.processes import Processes, joined
from ofqctl.training.state import FILE, Checkpoint, checkpoint_of, read_checkpoint_state, state_to_resume
from ofqctl.training.trial import seconds_per_step

__all__ = [
    "FILE",
    "Checkpoint",
    "Engine",
    "Hooks",
    "Interrupted",
    "LogName",
    "Logs",
    "Processes",
    "Row",
    "SameBatch",
    "Share",
    "TrainingBatches",
    "check_logs",
    "check_objective",
    "checkpoint_of",
    "joined",
    "needs_labels",
    "open_logs",
    "read_checkpoint_state",
    "seconds_per_step",
    "state_to_resume",
    "warmup_steps",
]
