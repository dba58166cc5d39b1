"""What a served model takes of an instance's memory: one account for ``plan``, ``--fit`` and ``package``.

Weights are mapped, so each byte of the file is there once, in the page cache. Beside it are the KV cache,
llama.cpp's buffers for computing, the vocabulary, and the runtime: Python, libraries, threads.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coldpress.errors import UsageError
from coldpress.serve.options import DEFAULT_CONTEXT

MIB = 1 << 20
_F16_BYTES, _F32_BYTES = 2, 4
# llama.cpp rounds a sequence's cells up to this.
_CELLS = 256
_PROMPT_CHUNK_TOKENS = 128  # serve.model.CHUNK_TOKENS; the buffers are for so many.
# Measured: `coldpress serve` after a request, less its weights, KV cache and buffers, on models of 4,096
# to 128,256 tokens, 2026-11-22, x86-64, llama-cpp-python 0.3.36: 39 to 45 MiB, and with the vocabulary
# so much more.
_RUNTIME_BYTES = 43 * MIB
_TOKEN_BYTES, _MERGE_BYTES = 130, 180
# Kept free for requests at their largest, fragmentation, the platform's own processes.
_RESERVE_BYTES = 64 * MIB
_TOKENS, _MERGES = "tokenizer.ggml.tokens", "tokenizer.ggml.merges"


@dataclass(frozen=True)
class Shape:
    """What decides the buffers; ``kv_values`` are keys and values of one token, all layers."""

    context: int
    layers: int
    hidden: int
    feed_forward: int
    vocabulary: int
    merges: int
    kv_values: int

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> "Shape":
        """Read it from a GGUF's metadata, key → value.

        Raises:
            UsageError: a key that every model of attention layers has is not there.
        """
        arch = fields.get("general.architecture")

        def value(key: str, default: Any = None) -> Any:
            found = fields.get(f"{arch}.{key}", default)
            if found is None:
                raise UsageError(
                    f"the GGUF has no {arch}.{key}, so its memory is unknown", "give --size"
                )
            return found

        layers, hidden = value("block_count"), value("embedding_length")
        heads = max(_each(value("attention.head_count"), layers))
        kv_heads = sum(_each(value("attention.head_count_kv", heads), layers))
        key = value("attention.key_length", hidden // heads)
        inner = max(_each(value("feed_forward_length"), layers))
        experts = value("expert_used_count", 1) * value("expert_feed_forward_length", inner)
        return cls(
            context=value("context_length"),
            layers=layers,
            hidden=hidden,
            feed_forward=max(inner, experts),
            vocabulary=len(fields.get(_TOKENS, ())),
            merges=len(fields.get(_MERGES, ())),
            kv_values=kv_heads * (key + value("attention.value_length", key)),
        )


@dataclass(frozen=True)
class Memory:
    """Where an instance's bytes go, weights apart.

    ``compute_bytes`` are what llama.cpp reserves, of which ``computed_bytes`` are really written:
    logits of every token of a chunk have room and are never asked for.
    """

    context: int
    sequences: int
    kv_cache_bytes: int
    compute_bytes: int
    computed_bytes: int
    runtime_bytes: int
    reserve_bytes: int = _RESERVE_BYTES

    @property
    def needed_bytes(self) -> int:
        """What an instance must have beside the weights."""
        used = self.kv_cache_bytes + self.compute_bytes + self.runtime_bytes
        return used + self.reserve_bytes

    @property
    def resident_bytes(self) -> int:
        """What will be found resident beside the weights, an estimate."""
        return self.kv_cache_bytes + self.computed_bytes + self.runtime_bytes


def account(shape: Shape, context: int | None, sequences: int) -> Memory:
    """Account for a model served with so many sequences.

    Args:
        context: tokens per sequence; by default what ``serve`` takes.
    """
    tokens = min(context or DEFAULT_CONTEXT, shape.context)
    cells = math.ceil(tokens / _CELLS) * _CELLS
    vocabulary = shape.vocabulary * _TOKEN_BYTES + shape.merges * _MERGE_BYTES
    rows = _F32_BYTES * sequences * shape.vocabulary
    inside = 3 * shape.feed_forward + cells // 2
    chunk = _F32_BYTES * _PROMPT_CHUNK_TOKENS
    return Memory(
        context=tokens,
        sequences=sequences,
        kv_cache_bytes=sequences * cells * shape.kv_values * _F16_BYTES,
        # What is widest at a time, and activations; then the logits. The mask is of 16 bits and there
        # until the last layer, the logits of a chunk after it.
        compute_bytes=chunk * (max(shape.vocabulary, inside) + 6 * shape.hidden) + rows,
        computed_bytes=chunk * (inside + 6 * shape.hidden) + rows,
        runtime_bytes=_RUNTIME_BYTES + vocabulary,
    )


def read_shares(fields: Mapping[str, Any], names: Sequence[str]) -> dict[str, float]:
    """Tensor → the share of its bytes that a generated token reads.

    Of experts only the chosen are read, and of an embedding table that is not the head one row.
    """
    counts = {key.rpartition(".")[2]: value for key, value in fields.items() if ".expert_" in key}
    experts = counts.get("expert_used_count", 1) / (counts.get("expert_count") or 1)
    untied = "output.weight" in names
    return {
        name: 0.0
        if name == "token_embd.weight" and untied
        else (experts if "_exps." in name else 1.0)
        for name in names
    }


def _each(value: int | Iterable[int], layers: int) -> list[int]:
    """A hyperparameter of every layer; most files have one number for all."""
    return [value] * layers if isinstance(value, int) else list(value)
