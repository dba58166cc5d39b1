"""Text → what every linear layer is given: an imatrix, and second moments to round with."""

from coldpress.calibrate.stage import Calibrated, CalibrateOptions, calibrate, plan

__all__ = ["CalibrateOptions", "Calibrated", "calibrate", "plan"]
