"""Knowledge distillation: teachers and losses."""

from ofqctl.distill.loss import distillation_loss
from ofqctl.distill.teacher import Teacher

__all__ = ["Teacher", "distillation_loss"]
