"""llama.cpp maps a model's files, without repacking."""

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

from coldpress import libllama
from coldpress.errors import CorruptModelError
from coldpress.serve.model import Model


def load(paths: Sequence[Path], shown: str) -> Model:
    """Map a GGUF or its shards: a repacked copy multiplies load time by five and memory by 1.8.

    Args:
        shown: what to call the model in messages; its file's stem is its name if it has no other.

    Raises:
        CorruptModelError: llama.cpp cannot load it.
    """
    lib = libllama.load()
    params = lib.llama_model_default_params()
    params.n_gpu_layers = 0
    params.load_mode = lib.LLAMA_LOAD_MODE_MMAP
    params.use_extra_bufts = False
    names = [os.fsencode(path) for path in paths]
    if len(names) == 1:
        handle = lib.llama_model_load_from_file(names[0], params)
    else:
        array = (ctypes.c_char_p * len(names))(*names)
        handle = lib.llama_model_load_from_splits(array, len(names), params)
    if not handle:
        raise CorruptModelError(f"llama.cpp cannot load {shown}", "check it: coldpress verify")
    return Model(lib, handle, Path(shown))
