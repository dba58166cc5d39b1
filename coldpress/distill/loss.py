"""How far a student's next-token distribution is from its teacher's.

The teacher's is known for its likeliest tokens, and for all others together as one more outcome; or for the
whole vocabulary. Merging outcomes only ever lowers a divergence, so what is minimised is a lower bound of the
divergence over the vocabulary.

Source: Hinton et al. 2015, arXiv:1503.02531 (temperature); Gu et al. 2024, arXiv:2306.08543 (reverse KL);
Agarwal et al. 2024, arXiv:2306.13649 (the mixture between them).
"""

from dataclasses import dataclass
from typing import Literal, assert_never

import torch
from torch import Tensor

Loss = Literal["forward", "reverse", "mix"]

_MIX = 0.5
_FLOOR = -30.0  # of a log-probability: a merged rest of nothing has none


@dataclass(frozen=True)
class Target:
    """The teacher's log-probabilities at some positions.

    ``log_p`` is (…, k + 1), the last of all tokens that ``ids``, (…, k), does not name; without ``ids`` it is
    (…, vocabulary).
    """

    log_p: Tensor
    ids: Tensor | None = None


def target(logits: Tensor, temperature: float, top_k: int) -> Target:
    """What a teacher's logits, (…, vocabulary), say at a temperature; ``top_k`` 0 keeps them all."""
    logits = logits.float() / temperature
    if not 0 < top_k < logits.shape[-1]:
        return Target(logits.log_softmax(-1))
    ids = logits.topk(top_k).indices
    return Target(_merged(logits, ids), ids)


def divergence(logits: Tensor, target: Target, loss: Loss, temperature: float) -> Tensor:
    """Divergence of a student, logits (…, vocabulary), from its teacher by position, (…), in nats.

    ``forward`` is KL(teacher ‖ student), ``reverse`` KL(student ‖ teacher), ``mix`` their mean. Times the
    squared temperature, so that gradients keep their size.
    """
    logits = logits.float() / temperature
    log_q = logits.log_softmax(-1) if target.ids is None else _merged(logits, target.ids)
    log_p = target.log_p.float()
    match loss:
        case "forward":
            found = _kl(log_p, log_q)
        case "reverse":
            found = _kl(log_q, log_p)
        case "mix":
            found = _MIX * _kl(log_p, log_q) + (1 - _MIX) * _kl(log_q, log_p)
        case _:
            assert_never(loss)
    return found * temperature**2


def hidden_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of hidden states, (…, width), as a share of the teacher's variance, a number."""
    spread = teacher.float().square().mean()
    return (student.float() - teacher.float()).square().mean() / spread


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _merged(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities of the named tokens and of the rest as one, (…, k + 1)."""
    total = logits.logsumexp(-1, keepdim=True)
    rest = logits.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([logits.gather(-1, ids), rest], -1).sub(total).clamp_min(_FLOOR)
