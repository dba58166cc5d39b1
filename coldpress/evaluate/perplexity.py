"""Perplexity by llama.cpp's rules, and KL divergence from a base over the same positions.

The text is cut into chunks of ``n_ctx`` tokens, each begins with BOS where the model uses one, and
the second half of each chunk is scored, so that every scored token has context.
Source: ``perplexity()`` in llama.cpp's tools/perplexity/perplexity.cpp.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coldpress import progress
from coldpress.errors import InputError, UsageError
from coldpress.evaluate import kl, result
from coldpress.evaluate.kl import Base
from coldpress.evaluate.logprobs import Floats, log_softmax_at
from coldpress.evaluate.session import Batch, Context, Ids, Model


@dataclass(frozen=True)
class Scored:
    """One pass over a text: ``kl`` where a base was given, ``base`` where none was."""

    perplexity: result.Perplexity
    kl: result.Kl | None
    base: Base | None


@dataclass(frozen=True)
class Chunks:
    """A text as chunks of token ids, (n_chunks, n_ctx), before BOS is put in."""

    tokens: Ids

    @property
    def first(self) -> int:
        """The first position whose logits are scored."""
        return int(self.tokens.shape[1]) // 2

    @property
    def targets(self) -> Ids:
        """The tokens that are predicted, (n_chunks, n_scored)."""
        return self.tokens[:, self.first + 1 :]


def chunks(model: Model, text: str, n_ctx: int, n_chunks: int | None) -> Chunks:
    """Tokenize a text and cut it, as llama-perplexity does; a last part chunk is left out.

    Raises:
        InputError: the text is shorter than two chunks.
    """
    ids = model.tokenize(text, add_special=True, parse_special=False)
    if len(ids) < 2 * n_ctx:
        raise InputError(
            f"the text has {len(ids)} tokens, perplexity needs two chunks of {n_ctx}",
            "give a longer text, or lower the chunk length",
        )
    n = min(len(ids) // n_ctx, n_chunks or len(ids))
    return Chunks(np.array(ids[: n * n_ctx], np.int32).reshape(n, n_ctx))


def score(
    model: Model, context: Context, text: Chunks, *, base: Base | None, top_k: int, profile: str
) -> Scored:
    """Score every chunk of a text; compare with ``base``, or collect one of ``top_k`` tokens.

    Raises:
        UsageError: the base was made with other tokens or another profile.
    """
    digest = kl.tokens_digest(text.tokens)
    if base is not None:
        _check(base, digest, profile)
    log_p: list[Floats] = []
    compared: list[tuple[Floats, NDArray[np.bool_]]] = []
    kept: list[tuple[NDArray[np.int32], NDArray[np.float32]]] = []
    top_k = min(top_k, model.n_vocab)
    n_scored = text.targets.shape[1]
    with progress.task("perplexity", len(text.tokens)) as tick:
        for i, chunk in enumerate(text.tokens):
            logits = _second_half(model, context, chunk, text.first)
            log_p.append(log_softmax_at(logits, text.targets[i]))
            if base is None:
                kept.append(kl.sample(logits, top_k, np.random.default_rng(i)))
            else:
                rows = slice(i * n_scored, (i + 1) * n_scored)
                compared.append(kl.divergence(base, rows, logits))
            tick(1)
    return Scored(
        _perplexity(np.concatenate(log_p), _n_bytes(model, text)),
        kl.summary(*map(np.concatenate, zip(*compared, strict=True))) if compared else None,
        _collect(kept, top_k, digest, profile) if kept else None,
    )


def _second_half(model: Model, context: Context, chunk: Ids, first: int) -> NDArray[np.float32]:
    """Logits of positions ``first`` … n_ctx - 2, copied: the last predicts beyond the chunk."""
    tokens = chunk.copy()
    if model.add_bos:
        tokens[0] = model.bos
    wanted = np.arange(len(tokens)) >= first
    wanted[-1] = False
    context.clear()
    batch = Batch.of_sequence(tokens, start=0, wanted=wanted)
    return np.concatenate([rows.copy() for _, rows in context.decode(batch)])


def _perplexity(log_p: Floats, n_bytes: int) -> result.Perplexity:
    mean = -float(log_p.mean())
    value = math.exp(mean)
    # The error of the mean, carried through the exponential; llama.cpp's formula.
    stderr = value * math.sqrt(float(log_p.var()) / (len(log_p) - 1))
    bits = mean * len(log_p) / math.log(2)
    return result.Perplexity(value, stderr, len(log_p), bits / n_bytes)


def _n_bytes(model: Model, text: Chunks) -> int:
    ids, counts = np.unique(text.targets, return_counts=True)
    return sum(len(model.piece(int(t))) * int(n) for t, n in zip(ids, counts, strict=True))


def _collect(
    kept: list[tuple[NDArray[np.int32], NDArray[np.float32]]],
    top_k: int,
    digest: str,
    profile: str,
) -> Base:
    ids, log_p = map(np.concatenate, zip(*kept, strict=True))
    return Base(ids, log_p, top_k, digest, profile)


def _check(base: Base, digest: str, profile: str) -> None:
    if base.tokens_sha256 != digest:
        raise UsageError(
            "the base was evaluated on other tokens than this model",
            "use the same text, chunk length, number of chunks and tokenizer",
        )
    if base.profile != profile:
        raise UsageError(
            f"the base was evaluated with profile {base.profile}, this model with {profile}",
            "use one profile for all",
        )
