"""How far a changed model is from what it was, on the same tokens."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from coldpress.distill.loss import Target, divergence, target

Tokens = npt.NDArray[np.int32]

_TOP_K = 128
_BATCH_TOKENS = 1024


class Before:
    """A model's answers to tokens, (sequences, context), kept while the model changes."""

    def __init__(self, model: Any, tokens: Tokens) -> None:
        self._tokens = tokens
        self._said: list[Target] = [target(each, 1.0, _TOP_K) for each in self._logits(model)]

    def kl(self, model: Any) -> float:
        """KL(before ‖ now), mean over positions, in nats, over the likeliest tokens and the rest as one."""
        total = 0.0
        for said, logits in zip(self._said, self._logits(model), strict=True):
            total += float(divergence(logits, said, "forward", 1.0).sum())
        return total / self._tokens.size

    def _logits(self, model: Any) -> Iterator[Tensor]:
        size = max(1, _BATCH_TOKENS // self._tokens.shape[1])
        for at in range(0, len(self._tokens), size):
            tokens = torch.from_numpy(self._tokens[at : at + size].astype(np.int64))
            with torch.inference_mode():
                yield model(tokens, use_cache=False).logits
