"""Weights that oscillate between two codes: a tracker that counts them, and remedies that hold them still."""

from ofqctl.oscillation.cga import ConfidentFreezing
from ofqctl.oscillation.remedy import Remedy
from ofqctl.oscillation.thresholds import distance_to_threshold
from ofqctl.oscillation.tracker import OscillationTracker
from ofqctl.oscillation.trajectory import Trajectory

__all__ = ["ConfidentFreezing", "OscillationTracker", "Remedy", "Trajectory", "distance_to_threshold"]
