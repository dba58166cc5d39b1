"""Seconds that this CPU takes per byte of weights of each type: what a generated token costs.

Generating reads every matrix once per token and multiplies it with one column, so a tensor's time is
its bytes times a rate of its type. I-quants look their codebooks up and are slower per byte.
Attention over the context and the norms come on top and do not depend on types.
"""

import ctypes
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from coldpress import libllama
from coldpress.errors import InputError, ToolError
from coldpress.memory import read_shares
from coldpress.progress import task
from coldpress.quantize.encode import Bytes, encode
from coldpress.quantize.types import TYPES, GgmlType

Rates = Mapping[str, float]

_INPUTS = 4096
_DISTINCT_ROWS = 16
_MATRIX_BYTES = 128 << 20  # More than caches hold, as a model is.
_REPEATS = 5
_F32, _CPU = 0, 0  # GGML_TYPE_F32, GGML_BACKEND_DEVICE_TYPE_CPU
_CONTEXT_BYTES = 1 << 20  # Tensors' and the graph's descriptions; their data is the backend's.
_HINT = 'JSON such as {"Q4_K": 1.2e-10}: seconds per byte, by type'


def read(path: Path) -> dict[str, float]:
    """Read rates that were measured on the machine that will serve: JSON, type → seconds per byte.

    Raises:
        InputError: not such a file.
    """
    try:
        rates = {name: float(rate) for name, rate in json.loads(path.read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a table of rates: {error}", _HINT) from error
    if wrong := [name for name, rate in rates.items() if name not in TYPES or not rate > 0]:
        raise InputError(f"{path} has no rate that could be meant for {wrong[0]}", _HINT)
    return rates


def measure(kinds: Iterable[GgmlType], threads: int) -> dict[str, float]:
    """Type → seconds per byte here, by llama.cpp's own matrix product with one column."""
    wanted = tuple(kinds)
    found = {}
    with task("measuring types' speed", len(wanted)) as advance, _cpu(threads) as backend:
        for kind in wanted:
            rows = _rows(kind)
            found[kind.name] = _seconds(backend, kind, rows) / rows.nbytes
            advance(1)
    return found


def read_share(reader: Any) -> dict[str, float]:
    """Tensor → the share of its bytes that a token reads; see ``memory.read_shares``."""
    experts = {name: each.contents() for name, each in reader.fields.items() if ".expert_" in name}
    return read_shares(experts, [tensor.name for tensor in reader.tensors])


def _rows(kind: GgmlType) -> Bytes:
    """A matrix of normal weights, (rows, bytes of a row), its rows repeated."""
    W = np.random.default_rng(0).standard_normal((_DISTINCT_ROWS, _INPUTS), dtype=np.float32)
    rows = encode(W, kind, np.ones(_INPUTS, np.float32))
    return np.tile(rows, (-(-_MATRIX_BYTES // rows.nbytes), 1))


def _seconds(backend: Any, kind: GgmlType, rows: Bytes) -> float:
    """Seconds of one product of the matrix with a column, the least of some: others only add."""
    ggml = _ggml()
    context = ggml.ggml_init(_InitParams(_CONTEXT_BYTES, None, True))
    matrix = ggml.ggml_new_tensor_2d(context, kind.ggml_id, _INPUTS, len(rows))
    column = ggml.ggml_new_tensor_2d(context, _F32, _INPUTS, 1)
    graph = ggml.ggml_new_graph(context)
    ggml.ggml_build_forward_expand(graph, ggml.ggml_mul_mat(context, matrix, column))
    buffer = ggml.ggml_backend_alloc_ctx_tensors(context, backend)
    ones = np.ones(_INPUTS, np.float32)
    for tensor, data in ((matrix, rows), (column, ones)):
        ggml.ggml_backend_tensor_set(tensor, data.ctypes.data, 0, data.nbytes)
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        ggml.ggml_backend_graph_compute(backend, graph)
        times.append(time.perf_counter() - start)
    ggml.ggml_backend_buffer_free(buffer)
    ggml.ggml_free(context)
    return min(times)


@contextmanager
def _cpu(threads: int) -> Iterator[Any]:
    """llama.cpp's CPU backend with so many threads."""
    libllama.load()
    ggml = _ggml()
    backend = ggml.ggml_backend_init_by_type(_CPU, None)
    if not backend:
        raise ToolError("no llama.cpp backend runs on this CPU", "run `make setup` again")
    registry = ggml.ggml_backend_dev_backend_reg(ggml.ggml_backend_get_device(backend))
    address = ggml.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_set_n_threads")
    ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)(address)(backend, threads)
    try:
        yield backend
    finally:
        ggml.ggml_backend_free(backend)


class _InitParams(ctypes.Structure):
    """``ggml_init_params`` of ggml.h."""

    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


def _ggml() -> ctypes.CDLL:
    """The library with the argument types of what is called here. Source: ggml.h, ggml-backend.h."""
    ggml = libllama.ggml()
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64
    for name, result, arguments in (
        ("ggml_init", pointer, (_InitParams,)),
        ("ggml_free", None, (pointer,)),
        ("ggml_new_tensor_2d", pointer, (pointer, ctypes.c_int, number, number)),
        ("ggml_mul_mat", pointer, (pointer, pointer, pointer)),
        ("ggml_new_graph", pointer, (pointer,)),
        ("ggml_build_forward_expand", None, (pointer, pointer)),
        ("ggml_backend_init_by_type", pointer, (ctypes.c_int, ctypes.c_char_p)),
        ("ggml_backend_free", None, (pointer,)),
        ("ggml_backend_get_device", pointer, (pointer,)),
        ("ggml_backend_dev_backend_reg", pointer, (pointer,)),
        ("ggml_backend_reg_get_proc_address", pointer, (pointer, ctypes.c_char_p)),
        ("ggml_backend_alloc_ctx_tensors", pointer, (pointer, pointer)),
        ("ggml_backend_buffer_free", None, (pointer,)),
        ("ggml_backend_tensor_set", None, (pointer, pointer, size, size)),
        ("ggml_backend_graph_compute", ctypes.c_int, (pointer, pointer)),
    ):
        function = getattr(ggml, name)
        function.restype, function.argtypes = result, arguments
    return ggml
