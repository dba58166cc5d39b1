"""How much KL each tensor costs in each type, from few measurements.

KL of a tensor quantized alone is its relative output error, which the bank knows for every type, times
a factor of the tensor. The factor varies tenfold and more between tensors, but hardly from type to
type; so it is measured at a few anchors and averaged, which also averages their noise.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from coldpress.progress import task
from coldpress.quantize.judge import Judge
from coldpress.quantize.source import is_quantizable, row_length
from coldpress.quantize.types import TYPES, GgmlType

# Where KL is well above what float32 logits resolve; the last two for rows of 32-blocks only.
ANCHORS = ("IQ2_XS", "IQ3_XXS", "IQ4_XS")
SHORT_ANCHORS = ("IQ4_NL", "Q4_0")
_LEAST_KL = 1e-9


@dataclass(frozen=True)
class Sensitivity:
    """KL in nats per token of one tensor in one type, all others as in the source.

    ``kl_nats`` is the tensor's factor times the type's ``error``, at the anchors too; ``measured_kl_nats``
    is what the network itself said there.
    """

    kl_nats: float
    error: float
    measured_kl_nats: float | None


def kinds(row: int) -> tuple[GgmlType, ...]:
    """The types whose blocks divide a row of this length."""
    return tuple(kind for kind in TYPES.values() if row % kind.block_size == 0)


def candidates(reader: Any) -> dict[str, tuple[GgmlType, ...]]:
    """Every matrix of a GGUF, embeddings and head included, and the types it can have.

    A matrix whose rows no type's blocks divide is not among them; it is copied.
    """
    matrices = filter(is_quantizable, reader.tensors)
    found = {each.name: kinds(row_length(each)) for each in matrices}
    return {name: some for name, some in found.items() if some}


def measure(
    choices: Mapping[str, Sequence[GgmlType]], judge: Judge
) -> dict[str, dict[str, Sensitivity]]:
    """Tensor → type → KL alone; one measurement per tensor and anchor, the ledger's reused."""
    judge.rebase({})
    found = {}
    with task("measuring sensitivities", len(choices)) as advance:
        for name, some in choices.items():
            errors = {kind.name: judge.error(name, kind.name) for kind in some}
            measured = {kind: judge.kl({name: kind}) for kind in anchors(errors)}
            found[name] = derive(errors, measured)
            advance(1)
    return found


def anchors(available: Iterable[str]) -> tuple[str, ...]:
    """The types at which a tensor with these choices is measured."""
    some = set(available)
    return tuple(kind for kind in ANCHORS if kind in some) or tuple(
        kind for kind in SHORT_ANCHORS if kind in some
    )


def derive(errors: Mapping[str, float], measured: Mapping[str, float]) -> dict[str, Sensitivity]:
    """KL of every type from those of some.

    Args:
        errors: type → relative error.
        measured: type → KL, one type at least.
    """
    factor = mean_factor((errors[kind], kl) for kind, kl in measured.items())
    return {
        kind: Sensitivity(factor * error, error, measured.get(kind))
        for kind, error in errors.items()
    }


def mean_factor(points: Iterable[tuple[float, float]]) -> float:
    """KL per relative error: the geometric mean over (error, KL); 0 where nothing has an error."""
    logs = [math.log(max(kl, _LEAST_KL) / error) for error, kl in points if error > 0]
    return math.exp(fmean(logs)) if logs else 0.0
