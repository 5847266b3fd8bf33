"""Weights that oscillate between two codes: a tracker that counts them, and what is known of one of them."""

from ofqctl.files import TRACKER_FILE
from ofqctl.oscillation.flips import MOVED, Flips, count_moved, count_parts
from ofqctl.oscillation.gradients import GradientWatch
from ofqctl.oscillation.roles import ROLES, in_parts, role_of, roles_of
from ofqctl.oscillation.thresholds import distance_to_threshold
from ofqctl.oscillation.tracker import OscillationTracker
from ofqctl.oscillation.trajectory import Trajectory
from ofqctl.results.layers import Role

__all__ = [
    "MOVED",
    "ROLES",
    "TRACKER_FILE",
    "Flips",
    "GradientWatch",
    "OscillationTracker",
    "Role",
    "Trajectory",
    "count_moved",
    "count_parts",
    "distance_to_threshold",
    "in_parts",
    "role_of",
    "roles_of",
]
