"""Log-probabilities of a few tokens, without turning every logit into one."""

import numpy as np
from numpy.typing import NDArray

from coldpress.evaluate.session import Rows

Floats = NDArray[np.float64]


def logsumexp(logits: Rows) -> Floats:
    """Log of the sum of exponentials of each row, (n, n_vocab) to (n,), summed in float64."""
    top = logits.max(axis=1, keepdims=True)
    total = np.exp(logits - top).sum(axis=1, dtype=np.float64)
    log: Floats = np.log(total) + top[:, 0]
    return log


def log_softmax_at(logits: Rows, tokens: NDArray[np.integer]) -> Floats:
    """The log-probability of one token per row, (n, n_vocab) and (n,) to (n,)."""
    picked: Floats = logits[np.arange(len(tokens)), tokens].astype(np.float64)
    return picked - logsumexp(logits)
