"""Weights that oscillate between two codes: a tracker that counts them, and remedies that stop them."""

from ofqctl.files import TRACKER_FILE
from ofqctl.oscillation.cga import CGA, ConfidentFreezing
from ofqctl.oscillation.choosing import check_remedies, remedies_of
from ofqctl.oscillation.dampening import Dampening, DampeningPenalty
from ofqctl.oscillation.flips import Flips, count_parts
from ofqctl.oscillation.freezing import Freezing, IterativeFreezing
from ofqctl.oscillation.gradients import GradientWatch
from ofqctl.oscillation.remedy import Remedy, RemedySettings
from ofqctl.oscillation.roles import ROLES, in_parts, role_of, roles_of
from ofqctl.oscillation.thresholds import distance_to_threshold
from ofqctl.oscillation.tracker import OscillationTracker
from ofqctl.oscillation.trajectory import Trajectory
from ofqctl.results.layers import Role

__all__ = [
    "CGA",
    "ROLES",
    "TRACKER_FILE",
    "ConfidentFreezing",
    "Dampening",
    "DampeningPenalty",
    "Flips",
    "Freezing",
    "GradientWatch",
    "IterativeFreezing",
    "OscillationTracker",
    "Remedy",
    "RemedySettings",
    "Role",
    "Trajectory",
    "check_remedies",
    "count_parts",
    "distance_to_threshold",
    "in_parts",
    "remedies_of",
    "role_of",
    "roles_of",
]
