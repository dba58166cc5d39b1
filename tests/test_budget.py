"""Budgets: words to bytes, the file's own arithmetic, and llama.cpp's own figure for memory."""

import ctypes
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldpress import libllama
from coldpress.errors import TooLargeError, UsageError
from coldpress.package import limits
from coldpress.quantize import budget
from coldpress.quantize.fit import fit
from coldpress.quantize.layout import predict_size, tensor_bytes
from coldpress.quantize.source import is_quantizable, open_gguf
from coldpress.quantize.types import TYPES
from coldpress.serve.load import mapping
from coldpress.serve.model import Context
from tests import tiny_gguf, zero_llama

MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1.9GB", 1_900_000_000),
        ("1.9 gb", 1_900_000_000),
        ("1GiB", 1 << 30),
        ("0.5MiB", 1 << 19),
        ("700MB", 700_000_000),
        ("3KB", 3000),
        ("3KiB", 3072),
        ("2100000", 2_100_000),
        ("17B", 17),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert budget.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "1.2.3GB", "4 bits", "1e9", "0.1B", "nan"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        budget.parse_size(text)
    assert "1.9GB" in caught.value.hint


@given(st.integers(1, 10**13))
def test_a_printed_size_is_enough_and_hardly_more(size: int) -> None:
    again = budget.parse_size(budget.format_size(size))
    assert size <= again <= size * 1.001 + 1


def test_bits_and_ladders() -> None:
    assert budget.parse_sweep("3.5, 2.25,3.5,6") == (2.25, 3.5, 6.0)
    for text in ("", "3,,4", "0", "64", "nan", "inf", "Q4_K"):
        with pytest.raises(UsageError):
            budget.parse_sweep(text)


def test_the_parts_of_a_file_are_its_whole(tmp_path: Path) -> None:
    """Fixed bytes and each tensor's padded bytes make the file; bits are counted as reported."""
    reader = open_gguf(tiny_gguf.write(tmp_path / "model.gguf"))
    metadata: dict[str, int | str] = {"general.file_type": 10, "quantize.imatrix.file": "x"}
    names = [each.name for each in reader.tensors if is_quantizable(each)][1:]  # One is copied.
    plan = {name: TYPES[("Q4_0", "Q5_1", "Q8_0")[i % 3]] for i, name in enumerate(names)}
    chosen = [tensor_bytes(each, plan) for each in reader.tensors if each.name in plan]
    parts = sum(budget.padded(size, reader) for size in chosen)
    size = budget.fixed_bytes(reader, metadata, names) + parts
    assert size == predict_size(reader, plan, metadata)
    stored = sum(tensor_bytes(each, plan) for each in reader.tensors)
    bits = 8 * stored / budget.n_weights(reader)
    padding = sum(budget.padded(tensor_bytes(t, plan), reader) for t in reader.tensors) - stored
    assert padding > 0
    assert abs(budget.file_bytes(bits, reader, metadata) + padding - size) <= 1


def llama_fields(**changes: Any) -> dict[str, Any]:
    """Metadata of Llama-3.2-1B's shape."""
    sizes = {
        "context_length": 131072,
        "block_count": 16,
        "embedding_length": 2048,
        "feed_forward_length": 8192,
        "attention.head_count": 32,
        "attention.head_count_kv": 8,
    }
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.tokens": range(128256),
        **{f"llama.{key}": value for key, value in (sizes | changes).items()},
    }


def test_a_context_takes_its_keys_and_values() -> None:
    memory = fit("lambda:3008MB", llama_fields(), context=4096)
    assert memory.memory_bytes == 3008 * MIB
    assert memory.beside.kv_cache_bytes == 16 * 8 * 64 * 2 * 2 * 4096  # 128 MiB
    layout = MIB + memory.memory_bytes // 16384
    assert memory.weights_bytes == memory.memory_bytes - memory.beside.needed_bytes - layout
    # Several sequences on Cloud Run, a layer without attention, heads of a size of their own.
    layers = {"attention.head_count_kv": [8] * 15 + [0], "attention.key_length": 128}
    other = fit("cloudrun:2GiB", llama_fields(**layers), context=300)
    assert other.beside.kv_cache_bytes == 4 * 512 * 15 * 8 * (128 + 128) * 2


def test_what_fits_passes_the_packager_and_nothing_more() -> None:
    for text in ("lambda:1024MB", "lambda:10240MB", "cloudrun:4GiB"):
        memory = fit(text, llama_fields(), context=512)
        mib = memory.memory_bytes // MIB
        layout = MIB + memory.memory_bytes // 16384
        needed = memory.weights_bytes + layout + memory.beside.needed_bytes
        limits.instance(memory.target, needed, mib)
        if needed == memory.memory_bytes:  # else the image is what is full
            with pytest.raises(TooLargeError):
                limits.instance(memory.target, needed + 1, mib)
        assert memory.weights_bytes <= (limits.image_bytes(memory.target) or mib * MIB)


@pytest.mark.parametrize("text", ["lambda", "lambda:", "moon:1GB", "3008MB", "lambda:much"])
def test_what_is_no_instance_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        fit(text, llama_fields())


def test_too_little_and_too_much_memory() -> None:
    with pytest.raises(UsageError, match="no memory for weights"):
        fit("lambda:256MB", llama_fields())
    with pytest.raises(TooLargeError):
        fit("lambda:20480MB", llama_fields())


def llama_buffers(path: Path, context: int, sequences: int) -> dict[str, float]:
    """What llama.cpp itself says that it allocates, in bytes, opened as the engine does."""
    lib, lines = libllama.load(), []
    callback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
    log = callback(lambda _level, text, _data: lines.append(text.decode()))
    model = mapping.load([path], str(path))
    lib.llama_log_set(log, None)
    try:
        Context(model, cells=context, sequences=sequences, threads=1).close()
    finally:
        libllama._silence(lib)
    found = re.findall(r"(KV|compute|output) +buffer size = +([\d.]+) MiB", "\n".join(lines))
    return {name: float(mib) * MIB for name, mib in found}


@pytest.mark.parametrize(
    ("sizes", "context"),
    [
        ({"hidden": 256, "heads": 8, "feed_forward": 768, "vocab": 4096}, 4096),
        ({"hidden": 256, "heads": 8, "feed_forward": 768, "vocab": 512}, 8192),  # mask
        ({"hidden": 64, "heads": 2, "feed_forward": 128, "vocab": 12000}, 512),  # logits
        ({"hidden": 256, "heads": 4, "feed_forward": 8192, "vocab": 512}, 512),  # feed-forward
    ],
)
def test_buffers_are_llama_cpps(tmp_path: Path, sizes: dict[str, int], context: int) -> None:
    path = zero_llama.write(tmp_path / "model.gguf", **sizes)
    fields = {name: field.contents() for name, field in open_gguf(path).fields.items()}
    memory = fit("cloudrun:4GiB", fields, context)
    told = llama_buffers(path, context, memory.beside.sequences)
    assert memory.beside.kv_cache_bytes == told["KV"]
    compute = told["compute"] + told["output"]
    assert compute * 0.99 <= memory.beside.compute_bytes <= compute * 1.5
