"""Post-training quantization: calibration, and the stages that follow it, one file each."""

from ofqctl.ptq.calibration import calibrate, calibrate_weights
from ofqctl.ptq.stages import quantize_post_training
from ofqctl.ptq.synthesis import fitted_images
from ofqctl.ptq.task import Clock, Task, check_time_budget
from ofqctl.ptq.units import Batches, Piece, on_disk, walk

__all__ = [
    "Batches",
    "Clock",
    "Piece",
    "Task",
    "calibrate",
    "calibrate_weights",
    "check_time_budget",
    "fitted_images",
    "on_disk",
    "quantize_post_training",
    "walk",
]
