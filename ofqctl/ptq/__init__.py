"""Post-training quantization: calibration and the methods built on it."""

from ofqctl.ptq.calibration import calibrate, calibrate_weights

__all__ = ["calibrate", "calibrate_weights"]
