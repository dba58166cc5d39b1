"""``--fit lambda:3008MB``: what an instance's memory leaves for the file.

The file is mapped, so each of its bytes is resident once; beside it are the KV cache, llama.cpp's
compute buffers and the runtime itself, as ``coldpress serve`` starts it on that platform.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from coldpress.errors import UsageError
from coldpress.package import limits
from coldpress.quantize.budget import format_size, parse_size
from coldpress.serve import options as engine_options

_MIB = 1 << 20
_F16_BYTES, _F32_BYTES = 2, 4
# llama.cpp rounds a sequence's cells up to this.
_CELLS = 256
# Resident memory of `coldpress serve` on a 0.2 MB model after a request: 64 MiB, 2026-11-21, x86-64,
# llama-cpp-python 0.3.36; the rest is for requests, threads and the allocator's slack.
_RUNTIME_BYTES = 128 * _MIB
# `package` keeps this much free whatever the model; a file made to fit must pass there too.
_LEAST_FREE_BYTES = 512 * _MIB
_PROMPT_CHUNK_TOKENS = 128  # serve.model.CHUNK_TOKENS; the compute buffers are for so many.
# The image without weights has 52 MB (README, 2026-11-21); a larger base wants some room.
_IMAGE_BYTES = 200_000_000
_HINT = "--fit lambda:3008MB or --fit cloudrun:2GiB"


@dataclass(frozen=True)
class Memory:
    """Where an instance's bytes go; ``weights_bytes`` is what is left for the file."""

    target: limits.Target
    memory_bytes: int
    context: int
    sequences: int
    kv_cache_bytes: int
    compute_bytes: int
    runtime_bytes: int
    weights_bytes: int


def fit(text: str, fields: Mapping[str, Any], context: int | None = None) -> Memory:
    """Split an instance's memory.

    Args:
        text: platform and memory; on Lambda MB means MiB, as it does in AWS's own settings.
        fields: the model's GGUF metadata, key → value.
        context: tokens per sequence; by default what ``serve`` takes.

    Raises:
        UsageError: no such platform, or nothing is left for weights.
        TooLargeError: the platform has no instance of this size.
    """
    target, size = _parse(text)
    shape = _Shape.read(fields)
    tokens = min(context or engine_options.DEFAULT_CONTEXT, shape.context)
    sequences = 1 if target == "lambda" else engine_options.EngineOptions().parallel
    cells = math.ceil(tokens / _CELLS) * _CELLS
    kv_cache = sequences * cells * shape.kv_values * _F16_BYTES
    compute = _compute_bytes(shape, cells, sequences)
    runtime = max(_RUNTIME_BYTES, _LEAST_FREE_BYTES - kv_cache - compute)
    weights = size - kv_cache - compute - runtime
    if (image := limits.image_bytes(target)) is not None:
        weights = min(weights, image - _IMAGE_BYTES)
    if weights <= 0:
        needed = format_size(kv_cache + compute + runtime)
        raise UsageError(
            f"{text} leaves no memory for weights: a context of {tokens} tokens needs {needed}",
            "more memory, or a shorter --context",
        )
    limits.instance(target, weights, size // _MIB)
    return Memory(target, size, tokens, sequences, kv_cache, compute, runtime, weights)


def _parse(text: str) -> tuple[limits.Target, int]:
    name, _, amount = text.strip().partition(":")
    target: limits.Target | None = next((t for t in get_args(limits.Target) if t == name), None)
    if target is None or not amount:
        raise UsageError(f"{text!r} is not a platform and its memory", _HINT)
    size = parse_size(amount)
    if target == "lambda" and amount.strip().upper().endswith("MB"):
        size = math.floor(float(amount.strip()[:-2]) * _MIB)
    return target, size


@dataclass(frozen=True)
class _Shape:
    """What decides the buffers; ``kv_values`` are keys and values of one token, all layers."""

    context: int
    hidden: int
    feed_forward: int
    vocabulary: int
    kv_values: int

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> "_Shape":
        arch = fields["general.architecture"]

        def value(key: str, default: Any = None) -> Any:
            found = fields.get(f"{arch}.{key}", default)
            if found is None:
                raise UsageError(f"the GGUF has no {arch}.{key}", "give --size instead of --fit")
            return found

        layers, hidden = value("block_count"), value("embedding_length")
        heads = max(_each(value("attention.head_count"), layers))
        kv_heads = sum(_each(value("attention.head_count_kv", heads), layers))
        key = value("attention.key_length", hidden // heads)
        active = value("expert_used_count", 1)
        inner = max(_each(value("feed_forward_length"), layers))
        return cls(
            context=value("context_length"),
            hidden=hidden,
            feed_forward=max(inner, active * value("expert_feed_forward_length", inner)),
            vocabulary=len(fields["tokenizer.ggml.tokens"]),
            kv_values=kv_heads * (key + value("attention.value_length", key)),
        )


def _each(value: int | Iterable[int], layers: int) -> list[int]:
    """A hyperparameter of every layer; most files have one number for all."""
    return [value] * layers if isinstance(value, int) else list(value)


def _compute_bytes(shape: _Shape, cells: int, sequences: int) -> int:
    """llama.cpp's buffers, from above: what is widest at a time, and activations; then the logits.

    The mask is of 16 bits and there until the last layer, the logits of a chunk after it.

    Held against llama.cpp's own figure by a test.
    """
    widest = max(shape.vocabulary, 3 * shape.feed_forward + cells // 2)
    computed = _PROMPT_CHUNK_TOKENS * (widest + 6 * shape.hidden)
    return _F32_BYTES * (computed + sequences * shape.vocabulary)
