"""Rounding with error feedback onto every ggml type."""

from coldpress.quantize.rounding.compensate import compensate
from coldpress.quantize.rounding.factor import Factor, factor

__all__ = ["Factor", "compensate", "factor"]
