"""Rows of weights → bytes of a ggml type, by ggml itself."""

import ctypes
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from coldpress import libllama
from coldpress.errors import InputError, IntegrityError
from coldpress.quantize.source import Floats, row_length, rows
from coldpress.quantize.types import GgmlType

Bytes = npt.NDArray[np.uint8]

_SLAB_WEIGHTS = 1 << 22
_CHUNK_WEIGHTS = 1 << 16
_REPORT = "the types table does not fit this llama-cpp-python; report this"


def encode(W: Floats, kind: GgmlType, importance: Floats | None) -> Bytes:
    """Encode ``W`` as ggml does, each row on its own, on every core.

    Args:
        W: weights, (rows, inputs); ``inputs`` a multiple of the type's block size; finite.
        importance: weight of each input's squared error, (inputs,), or None for ggml's own choice.

    Returns:
        (rows, bytes of a row).

    Source: ggml_quantize_chunk in llama.cpp's ggml/include/ggml.h.
    """
    W = np.ascontiguousarray(W, dtype=np.float32)
    count, inputs = W.shape
    out = np.empty((count, kind.row_bytes(inputs)), dtype=np.uint8)
    weights = None
    if importance is None and _ggml().ggml_quantize_requires_imatrix(kind.ggml_id):
        # ggml would abort the process. A matrix without an imatrix entry is an embedding table that
        # is only looked up, so that each of its columns counts the same.
        importance = np.ones(inputs, dtype=np.float32)
    if importance is not None:
        importance = np.ascontiguousarray(importance, dtype=np.float32)
        if importance.shape != (inputs,):
            raise ValueError(f"importance of {importance.shape} for {inputs} inputs")
        weights = importance.ctypes.data

    def encode_rows(start: int) -> int:
        own, to = W[start : start + step], out[start : start + step]
        written: int = _ggml().ggml_quantize_chunk(
            kind.ggml_id, own.ctypes.data, to.ctypes.data, 0, len(own), inputs, weights
        )
        return written

    step = max(1, _CHUNK_WEIGHTS // inputs)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # ctypes lets go of the interpreter's lock.
        written = sum(pool.map(encode_rows, range(0, count, step)))
    if written != out.nbytes:
        raise IntegrityError(
            f"ggml wrote {written} bytes of {kind.name}, not {out.nbytes}", _REPORT
        )
    return out


def encode_tensor(tensor: Any, kind: GgmlType, importance: Floats | None) -> Bytes:
    """Encode a tensor of a GGUF in slabs of rows.

    Args:
        importance: (experts, inputs), one row for a plain matrix; None as in ``encode``.

    Raises:
        InputError: the tensor holds an infinity or a NaN.
    """

    def encode_slab(slab: tuple[int, int]) -> Bytes:
        W = rows(tensor, *slab)
        if not np.isfinite(W).all():
            raise InputError(f"{tensor.name} holds an infinity or a NaN", "fetch the model again")
        expert = slab[0] // rows_per_expert
        return encode(W, kind, None if importance is None else importance[expert])

    total = tensor.n_elements // row_length(tensor)
    rows_per_expert = total if importance is None else total // len(importance)
    return np.concatenate([encode_slab(slab) for slab in _slabs(tensor, rows_per_expert)])


def _slabs(tensor: Any, rows_per_expert: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows of about ``_SLAB_WEIGHTS`` weights, none across two experts."""
    total = tensor.n_elements // row_length(tensor)
    step = max(1, _SLAB_WEIGHTS // row_length(tensor))
    for first in range(0, total, rows_per_expert):
        last = first + rows_per_expert
        for start in range(first, last, step):
            yield start, min(start + step, last)


@cache
def _ggml() -> ctypes.CDLL:
    ggml = ctypes.CDLL(str(libllama.library_dir() / "libggml-base.so"))
    ggml.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    ggml.ggml_quantize_requires_imatrix.argtypes = [ctypes.c_int]
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    return ggml
