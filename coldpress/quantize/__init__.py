"""A bf16 GGUF → a quantized GGUF that stock llama.cpp loads, encoded by ggml itself."""

from coldpress.quantize.stage import Quantized, QuantizeOptions, plan, quantize, sweep

__all__ = ["QuantizeOptions", "Quantized", "plan", "quantize", "sweep"]
