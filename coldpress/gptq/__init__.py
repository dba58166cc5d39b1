"""The Hugging Face GPTQ format: our own rounding, a writer for quantize, a reader for convert."""

from coldpress.gptq.options import REPLACED, GptqOptions, is_auto_gptq

__all__ = ["REPLACED", "GptqOptions", "is_auto_gptq"]
