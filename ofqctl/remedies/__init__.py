"""What a phase of training does beside optimizing, such as holding codes or adding a penalty: one file each."""

from ofqctl.remedies.cga import CGA, ConfidentFreezing
from ofqctl.remedies.choosing import check_remedies, prepare_remedies, remedies_of
from ofqctl.remedies.dampening import Dampening, DampeningPenalty
from ofqctl.remedies.freezing import Freezing, IterativeFreezing
from ofqctl.remedies.remedy import Remedy, RemedySettings

__all__ = [
    "CGA",
    "ConfidentFreezing",
    "Dampening",
    "DampeningPenalty",
    "Freezing",
    "IterativeFreezing",
    "Remedy",
    "RemedySettings",
    "check_remedies",
    "prepare_remedies",
    "remedies_of",
]
