"""KL divergence from a base model whose distributions are kept as top-k and a remainder.

Of each position the base file stores the ``k`` most likely tokens' log-probabilities; the rest of
the vocabulary becomes one bucket on both sides:

    KL ≥ Σ_{t in top-k} p_t log(p_t / q_t) + P_rest log(P_rest / Q_rest)

By the log-sum inequality this is a lower bound, exact when ``k`` is the whole vocabulary; what it
leaves out is the disagreement among tokens that the base model holds unlikely.
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

FILE = "kl-base.npz"
_KEYS = frozenset({"ids", "log_p", "log_rest", "tokens_sha256", "n_vocab", "profile"})


@dataclass(frozen=True)
class Base:
    """A base model's distributions at n scored positions.

    ``ids``: (n, k) token ids, the most likely first. ``log_p``: (n, k) their log-probabilities.
    ``log_rest``: (n,) log of what all other tokens share, -inf if nothing.
    """

    ids: NDArray[np.int32]
    log_p: NDArray[np.float32]
    log_rest: NDArray[np.float32]
    tokens_sha256: str
    n_vocab: int
    profile: str


def tokens_digest(tokens: Ids) -> str:
    """Sha256 of the scored tokens; a base may only be compared on the same ones."""
    return sha256(np.ascontiguousarray(tokens, "<i4").tobytes()).hexdigest()


def truncate(logits: Rows, k: int) -> tuple[NDArray[np.int32], NDArray[np.float32], Floats]:
    """The top-k of each row of logits, (n, n_vocab): ids, log-probabilities, log of the rest."""
    n_vocab = logits.shape[1]
    k = min(k, n_vocab)
    ids = np.argpartition(-logits, k - 1, axis=1)[:, :k] if k < n_vocab else _every_id(logits)
    values = np.take_along_axis(logits, ids, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    ids = np.take_along_axis(ids, order, axis=1)
    log_p = np.take_along_axis(values, order, axis=1) - logsumexp(logits)[:, None]
    rounded = log_p.astype(np.float32)
    return ids.astype(np.int32), rounded, log_rest(rounded, n_vocab)


def log_rest(log_p: NDArray[np.floating], n_vocab: int) -> Floats:
    """Log of the probability outside the given tokens, (n, k) to (n,)."""
    if log_p.shape[1] == n_vocab:
        return np.full(len(log_p), -np.inf)
    with np.errstate(divide="ignore"):
        rest: Floats = np.log(np.clip(1.0 - np.exp(log_p.astype(np.float64)).sum(axis=1), 0.0, 1.0))
    return rest


def divergence(base: Base, rows: slice, logits: Rows) -> tuple[Floats, NDArray[np.bool_]]:
    """KL(base ‖ model) in nats at some positions, and whether the most likely token is the same.

    Args:
        base: the base model's distributions.
        rows: which of its positions ``logits``, (n, n_vocab), belong to.
        logits: the model's.
    """
    ids = base.ids[rows]
    # Rounded as the base was, so that a model differs from itself by exactly nothing.
    log_q = (np.take_along_axis(logits, ids, axis=1) - logsumexp(logits)[:, None]).astype(
        np.float32
    )
    log_p = base.log_p[rows]
    p = np.exp(log_p.astype(np.float64))
    kl: Floats = (p * (log_p.astype(np.float64) - log_q)).sum(axis=1)
    if ids.shape[1] < base.n_vocab:
        rest_p = base.log_rest[rows].astype(np.float64)
        rest_q = log_rest(log_q, base.n_vocab).astype(np.float32)
        some = np.isfinite(rest_p) & np.isfinite(rest_q)
        kl[some] += np.exp(rest_p[some]) * (rest_p[some] - rest_q[some])
    return kl, logits.argmax(axis=1) == ids[:, 0]


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
                log_rest=data["log_rest"],
                tokens_sha256=str(data["tokens_sha256"]),
                n_vocab=int(data["n_vocab"]),
                profile=str(data["profile"]),
            )
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path} does not exist", "evaluate the base model first") from error
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise InputError(f"{path} is not a KL base: {error}", "evaluate the base again") from error


def _every_id(logits: Rows) -> NDArray[np.intp]:
    return np.broadcast_to(np.arange(logits.shape[1]), logits.shape)
