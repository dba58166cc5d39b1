"""Pack training documents into windows. A batch is a function of (seed, step) alone.

So a run resumed at step n sees exactly the batches that an unbroken run would see.
"""

# ruff: noqa: S311 - seeded on purpose: equal seeds give equal files
from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch

from .knowledge.documents import Knowledge, Part, sample_document

LONG_EVERY = 8  # each eighth step uses windows of 1024, so that every position is trained
LONG_WINDOW = 1024


@dataclass(frozen=True)
class Batch:
    """ids (B, T+1) int64 and the loss weight of each id (B, T+1) float32."""

    ids: torch.Tensor
    weights: torch.Tensor


def encode_document(tokenizer: Any, parts: list[Part]) -> tuple[list[int], list[float]]:
    """Tokenize a document between <s> and </s>; ``tokenizer`` is a SentencePieceProcessor."""
    ids, weights = [tokenizer.bos_id()], [0.0]
    for text, weight in parts:
        piece_ids = tokenizer.encode(text)
        ids += piece_ids
        weights += [weight] * len(piece_ids)
    return [*ids, tokenizer.eos_id()], [*weights, 0.3]


def make_batch(
    knowledge: Knowledge, tokenizer: Any, *, seed: int, step: int, tokens: int, window: int
) -> Batch:
    """Build the batch of one step: ``tokens`` ids in windows of ``window`` (or 1024)."""
    rng = random.Random(f"{seed} {step}")
    length = LONG_WINDOW if step % LONG_EVERY == LONG_EVERY - 1 else window
    rows = [_window(knowledge, tokenizer, rng, length + 1) for _ in range(max(1, tokens // length))]
    return Batch(torch.tensor([r[0] for r in rows]), torch.tensor([r[1] for r in rows]))


def _window(
    knowledge: Knowledge, tokenizer: Any, rng: random.Random, length: int
) -> tuple[list[int], list[float]]:
    ids: list[int] = []
    weights: list[float] = []
    while len(ids) < length:
        more_ids, more_weights = encode_document(tokenizer, sample_document(knowledge, rng))
        ids += more_ids
        weights += more_weights
    return ids[:length], weights[:length]
