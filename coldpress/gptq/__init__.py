"""The Hugging Face GPTQ format: our own rounding, a writer for quantize, a reader for convert."""

from coldpress.gptq.options import REPLACED, GptqOptions, is_auto_gptq
from coldpress.gptq.stage import checkpoint

__all__ = ["REPLACED", "GptqOptions", "checkpoint", "is_auto_gptq"]
