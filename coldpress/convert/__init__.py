"""Hugging Face checkpoint → GGUF, by llama.cpp's own converter, proven against transformers."""

from coldpress.convert.stage import Converted, ConvertOptions, convert, plan

__all__ = ["ConvertOptions", "Converted", "convert", "plan"]
