"""A bank and a network whose KL is a formula: tensors of one weight row, errors that interact."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from coldpress.quantize.judge import Floats
from coldpress.quantize.types import TYPES, GgmlType


@dataclass(frozen=True)
class FakeCandidate:
    data: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
    error: float


class FakeNetwork:
    """KL of a plan: each tensor's factor times error, and products of neighbours' errors on top.

    The sign of a product differs from type to type, as it does in a real network; with an
    ``interaction`` below one the KL is positive. A tensor's weights are one number, its relative error.
    """

    def __init__(self, n_tensors: int, interaction: float = 0.0) -> None:
        self.names = [f"t{i}" for i in range(n_tensors)]
        self.factors = {name: 2.0 ** (i % 5) for i, name in enumerate(self.names)}
        self.interaction = interaction
        self.fail_after: int | None = None
        self.last_changes: set[str] = set()
        self._present: dict[str, float] = {}

    def error(self, name: str, kind: GgmlType) -> float:
        """Four times less for each bit; not quite the same for each tensor."""
        bits = kind.bits_per_weight + (sum(map(ord, name + kind.name)) % 7) * 0.02
        return float(np.float32(4.0**-bits))

    def rebase(self, changes: Mapping[str, Floats]) -> None:
        self._present = {name: float(values.flat[0]) for name, values in changes.items()}

    def kl(self, changes: Mapping[str, Floats]) -> float:
        if self.fail_after is not None:
            if not self.fail_after:
                raise KeyboardInterrupt
            self.fail_after -= 1
        self.last_changes = set(changes)
        errors = self._present | {name: float(values.flat[0]) for name, values in changes.items()}
        return self.of_errors(errors)

    def of_errors(self, errors: Mapping[str, float]) -> float:
        parts = [self.factors[name] * errors.get(name, 0.0) for name in self.names]
        pairs = pairwise(parts)
        products = (math.sqrt(a * b) * math.sin(1e6 * (a + b)) for a, b in pairs)
        return sum(parts) + self.interaction * sum(products)


class FakeBank:
    """Candidates for a fake network's tensors."""

    def __init__(self, network: FakeNetwork) -> None:
        self._candidates = {
            (name, kind.name): FakeCandidate(
                np.frombuffer(f"{name}{kind.name}".encode(), np.uint8).copy(),
                network.error(name, kind),
            )
            for name in network.names
            for kind in TYPES.values()
        }

    def candidate(self, name: str, kind: GgmlType) -> FakeCandidate:
        return self._candidates[name, kind.name]

    def weights(self, name: str, kind: GgmlType) -> Floats:
        return np.array([[self.candidate(name, kind).error]], dtype=np.float32)
