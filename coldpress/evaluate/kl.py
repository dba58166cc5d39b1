"""KL divergence from a base model, of whose distributions a small sample is kept.

Of each position the base file stores the ``k`` most likely tokens and ``N_DRAWN`` tokens drawn from
all others in proportion to their probability, with their log-probabilities:

    KL ≈ Σ_{t in top-k} p_t log(p_t / q_t) + P_rest · mean_{t drawn} log(p_t / q_t)

The first sum is exact and the mean is an unbiased estimate of the rest, so the mean over positions
is unbiased too; at single positions it is a little noisy. With ``k`` the whole vocabulary it is exact.
A model compared with itself differs by exactly nothing.
"""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from coldpress.errors import InputError
from coldpress.evaluate.logprobs import Floats, logsumexp
from coldpress.evaluate.result import Kl
from coldpress.evaluate.session import Ids, Rows

N_DRAWN = 64
_KEYS = frozenset({"ids", "log_p", "top_k", "tokens_sha256", "profile"})


@dataclass(frozen=True)
class Base:
    """A base model's distributions at n scored positions.

    ``ids``: (n, m) token ids, the ``top_k`` most likely first, in falling order, then those drawn.
    ``log_p``: (n, m) their log-probabilities.
    """

    ids: NDArray[np.int32]
    log_p: NDArray[np.float32]
    top_k: int
    tokens_sha256: str
    profile: str


def tokens_digest(tokens: Ids) -> str:
    """Sha256 of the scored tokens; a base may only be compared on the same ones."""
    return sha256(np.ascontiguousarray(tokens, "<i4").tobytes()).hexdigest()


def sample(
    logits: Rows, top_k: int, random: np.random.Generator
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """What to keep of each row of logits, (n, n_vocab): token ids and log-probabilities, (n, m)."""
    ids = np.argsort(-logits, axis=1, kind="stable")[:, :top_k]
    if top_k < logits.shape[1]:
        ids = np.concatenate([ids, _draw(logits, ids, random)], axis=1)
    return ids.astype(np.int32), _log_p_at(logits, ids)


def divergence(base: Base, rows: slice, logits: Rows) -> tuple[Floats, NDArray[np.bool_]]:
    """KL(base ‖ model) in nats at some positions, and whether the most likely token is the same.

    Args:
        base: the base model's distributions.
        rows: which of its positions ``logits``, (n, n_vocab), belong to.
        logits: the model's.
    """
    ids, log_p = base.ids[rows], base.log_p[rows].astype(np.float64)
    ratio = log_p - _log_p_at(logits, ids)
    p = np.exp(log_p[:, : base.top_k])
    kl: Floats = (p * ratio[:, : base.top_k]).sum(axis=1)
    if ids.shape[1] > base.top_k:
        rest = np.clip(1.0 - p.sum(axis=1), 0.0, 1.0)
        kl += rest * ratio[:, base.top_k :].mean(axis=1)
    return kl, logits.argmax(axis=1) == ids[:, 0]


def _log_p_at(logits: Rows, ids: NDArray[np.integer]) -> NDArray[np.float32]:
    at: NDArray[np.float64] = np.take_along_axis(logits, ids, axis=1) - logsumexp(logits)[:, None]
    return at.astype(np.float32)


def _draw(
    logits: Rows, top: NDArray[np.integer], random: np.random.Generator
) -> NDArray[np.integer]:
    """Draw ``N_DRAWN`` tokens of each row outside ``top``, evenly spaced in probability."""
    p = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    np.put_along_axis(p, top, 0.0, axis=1)
    reach = np.cumsum(p, axis=1)
    spots = (np.arange(N_DRAWN) + random.random((len(logits), 1))) / N_DRAWN * reach[:, -1:]
    drawn = [np.searchsorted(row, at, side="right") for row, at in zip(reach, spots, strict=True)]
    within: NDArray[np.integer] = np.minimum(np.array(drawn), logits.shape[1] - 1)
    return within


def summary(kl: Floats, same_top1: NDArray[np.bool_]) -> Kl:
    """Mean, median, 99th percentile and maximum over positions."""
    return Kl(
        mean=float(kl.mean()),
        median=float(np.median(kl)),
        p99=float(np.quantile(kl, 0.99)),
        max=float(kl.max()),
        same_top1=float(same_top1.mean()),
        n=len(kl),
    )


def write(base: Base, path: Path) -> None:
    """Write a base file: plain arrays, no pickles, the same bytes for the same base."""
    with path.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **vars(base))


def read(path: Path) -> Base:
    """Read a base file.

    Raises:
        InputError: there is none, or it is not one.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as data:
            if set(data.files) != _KEYS:
                raise ValueError(f"it holds {', '.join(data.files)}")
            return Base(
                ids=data["ids"],
                log_p=data["log_p"],
                top_k=int(data["top_k"]),
                tokens_sha256=str(data["tokens_sha256"]),
                profile=str(data["profile"]),
            )
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path} does not exist", "evaluate the base model first") from error
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise InputError(f"{path} is not a KL base: {error}", "evaluate the base again") from error
