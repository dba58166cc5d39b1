"""Text → imatrix: E[x²] of every linear layer's input, in llama.cpp's own format."""

from coldpress.calibrate.stage import Calibrated, CalibrateOptions, calibrate, plan

__all__ = ["CalibrateOptions", "Calibrated", "calibrate", "plan"]
