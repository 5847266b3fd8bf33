"""What training minimizes: teachers, and the terms of the objective, one file each."""

from ofqctl.distill.answers import set_separate_heads
from ofqctl.distill.features import FeatureDistillation
from ofqctl.distill.soft_labels import AboutSoftLabels, SoftLabels, labels_digest, weights_digest
from ofqctl.distill.teacher import Teacher
from ofqctl.distill.term import Pass, Term
from ofqctl.recipe.methods import TERMS

__all__ = [
    "TERMS",
    "AboutSoftLabels",
    "FeatureDistillation",
    "Pass",
    "SoftLabels",
    "Teacher",
    "Term",
    "labels_digest",
    "set_separate_heads",
    "weights_digest",
]
