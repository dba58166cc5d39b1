"""The true KL of plans, each measured once: an interrupted search goes on where it was."""

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from coldpress.artifact import sha256_json
from coldpress.quantize.types import TYPES, GgmlType

Floats = npt.NDArray[np.float32]
Types = Mapping[str, str]  # Tensor → type's name; a tensor that is not in it is as in the source.


class Candidate(Protocol):
    """A tensor in a type: its bytes and ||(W−Q)Xᵀ||² / ||WXᵀ||² on held-out inputs."""

    @property
    def data(self) -> npt.NDArray[np.uint8]:
        """The bytes, (rows, bytes of a row)."""

    @property
    def error(self) -> float:
        """The relative error."""


class Bank(Protocol):
    """Every tensor in every type; see ``bank``."""

    def candidate(self, name: str, kind: GgmlType) -> Candidate:
        """The tensor's bytes and error."""

    def weights(self, name: str, kind: GgmlType) -> Floats:
        """The decoded rows."""


class Network(Protocol):
    """The model with some of its weights replaced; see ``network``."""

    def rebase(self, changes: Mapping[str, Floats]) -> None:
        """Take the source with these replaced as the present state."""

    def kl(self, changes: Mapping[str, Floats]) -> float:
        """KL from the source of the present state with these replaced too, nats per token."""


class Ledger:
    """Measured figures in a file of JSON lines, found again by what was measured."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, float] = {}
        if path.exists():
            for line in path.read_bytes().splitlines():
                self._read(line)

    def get(self, key: str) -> float | None:
        """The figure, if it was measured before."""
        return self._known.get(key)

    def add(self, key: str, value: float, **about: Any) -> None:
        """Record a figure and, for the reader, what it is about."""
        self._known[key] = value
        line = json.dumps({"key": key, "value": value, **about}, sort_keys=True)
        with self._path.open("a", encoding="utf-8") as stream:
            # A line that was cut off by a kill ends here, and not in the middle of this one.
            stream.write(("\n" if self._torn() else "") + line + "\n")

    def _read(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
            self._known[entry["key"]] = float(entry["value"])
        except (ValueError, KeyError, TypeError):
            return  # Cut off by a kill; it is measured again.

    def _torn(self) -> bool:
        data = self._path.read_bytes()[-1:]
        return data not in (b"", b"\n")


class Judge:
    """Measures plans around a present one, through the ledger.

    Args:
        about: a digest of the model and the tokens; figures of others are not mixed with these.
    """

    def __init__(self, bank: Bank, network: Network, ledger: Ledger, about: str) -> None:
        self.bank = bank
        self.n_measured = 0
        self._network = network
        self._ledger = ledger
        self._about = about
        self._digests: dict[tuple[str, str], str] = {}
        self._base: dict[str, str] = {}
        self._based: dict[str, str] | None = None

    def rebase(self, plan: Types) -> None:
        """Let ``plan`` be the present state; the network follows when something is measured."""
        self._base = dict(plan)

    def kl(self, changes: Types) -> float:
        """The KL of the present plan with ``changes``, nats per token."""
        plan = self._base | dict(changes)
        key = self._key(plan)
        if (known := self._ledger.get(key)) is None:
            known = self._measure({n: t for n, t in changes.items() if self._base.get(n) != t})
            self._ledger.add(key, known, changes=dict(changes))
        return known

    def error(self, name: str, kind: str) -> float:
        """The bank's relative held-out error of a tensor in a type."""
        return self.bank.candidate(name, TYPES[kind]).error

    def _measure(self, changes: Types) -> float:
        if self._based != self._base:
            self._network.rebase(self._weights(self._base))
            self._based = dict(self._base)
        self.n_measured += 1
        return self._network.kl(self._weights(changes))

    def _weights(self, types: Types) -> dict[str, Floats]:
        return {name: self.bank.weights(name, TYPES[kind]) for name, kind in types.items()}

    def _key(self, plan: Types) -> str:
        digests = [[name, kind, self._digest(name, kind)] for name, kind in sorted(plan.items())]
        return sha256_json([self._about, digests])[:32]

    def _digest(self, name: str, kind: str) -> str:
        if (name, kind) not in self._digests:
            data = np.ascontiguousarray(self.bank.candidate(name, TYPES[kind]).data)
            self._digests[name, kind] = sha256(data.tobytes()).hexdigest()
        return self._digests[name, kind]
