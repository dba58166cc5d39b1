"""Engines in the test's own process, and quantized models for them."""

from pathlib import Path
from typing import Any

from coldpress import libllama
from coldpress.serve.engine import Engine
from coldpress.serve.load.place import locate
from coldpress.serve.options import EngineOptions
from coldpress.serve.trace import Trace


def start(path: Path, **options: Any) -> Engine:
    """An engine that answers; close it."""
    engine = Engine(locate(path), EngineOptions(**options), Trace())
    engine.start()
    assert engine.wait(60), engine.failure
    return engine


def quantized(source: Path, out: Path, preset: int) -> Path:
    """A GGUF by llama.cpp's quantizer: preset 7 is Q8_0, 10 Q2_K, 15 Q4_K_M."""
    lib = libllama.load()
    params = lib.llama_model_quantize_default_params()
    params.ftype = preset
    assert lib.llama_model_quantize(str(source).encode(), str(out).encode(), params) == 0
    return out
