"""Knowledge distillation: teachers and losses."""

from ofqctl.distill.features import FeatureDistillation
from ofqctl.distill.loss import distillation_loss
from ofqctl.distill.teacher import Teacher

__all__ = ["FeatureDistillation", "Teacher", "distillation_loss"]
