"""Every tensor in every type that was asked for, made once and kept: what a search chooses from.

A candidate is made in two ways, by ggml under the imatrix and with error feedback under the second moments; the
one with the lower error on held-out inputs is kept. Each is a file, written whole or not at all, so an
interrupted sweep goes on with what it has.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np

from coldpress.artifact import sha256_json
from coldpress.calibrate.imatrix import Imatrix
from coldpress.calibrate.statistics import Statistics
from coldpress.errors import InputError
from coldpress.quantize.encode import Bytes, encode_tensor
from coldpress.quantize.rounding import Factor, compensate, factor
from coldpress.quantize.source import Floats, row_length, rows
from coldpress.quantize.types import GgmlType

# Rows enough to keep the cores busy, and few enough weights to hold several copies of.
_SLAB_ROWS, _SLAB_WEIGHTS = 1024, 1 << 22

Rounding = Literal["compensated", "imatrix"]


@dataclass(frozen=True)
class Candidate:
    """A tensor in a type.

    ``data`` is (rows, bytes of a row). ``error`` is ‖(W−Q)Xᵀ‖² / ‖WXᵀ‖² on held-out inputs X, and
    ``imatrix_error`` that of ggml's own rounding under the imatrix; ``rounding`` says which of the two is in
    ``data``. ``damp`` is the damping that the curvature needed, 0 where there was none to use.
    """

    data: Bytes
    error: float
    imatrix_error: float
    rounding: Rounding
    damp: float


class Bank:
    """Candidates by tensor and type, in a folder."""

    def __init__(
        self,
        folder: Path,
        reader: Any,
        weights: Imatrix,
        statistics: Statistics,
        key: Mapping[str, object],
    ) -> None:
        """Open or begin a bank.

        Args:
            folder: where banks are; this one gets its own below it, named by ``key``.
            reader: gguf.GGUFReader of the file to quantize.
            key: what the candidates depend on: digests of the inputs and of the code.
        """
        self.folder = folder / sha256_json(dict(key))[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._weights, self._statistics = weights, statistics
        self._factors = lru_cache(maxsize=2)(self._make_factors)

    def candidate(self, name: str, kind: GgmlType) -> Candidate:
        """The candidate, from its file or made now.

        Raises:
            InputError: the tensor holds a NaN or an infinity, or its second moments are unusable.
        """
        path = self.folder / f"{name}.{kind.name}.npz"
        if path.is_file():
            return _load(path)
        made = self._make(name, kind)
        _save(path, made)
        return made

    def weights(self, name: str, kind: GgmlType) -> Floats:
        """The decoded rows of a candidate, (rows, inputs)."""
        return _decode(self.candidate(name, kind).data, kind)

    def _make(self, name: str, kind: GgmlType) -> Candidate:
        tensor = self._tensors[name]
        plain = encode_tensor(tensor, kind, self._weights.importance(name))
        if name not in self._statistics.names:
            (error,) = self._errors(name, [plain], kind)
            return Candidate(plain, error, error, "imatrix", 0.0)
        factors = self._factors(self._statistics.input_of(name))
        fed_back = np.concatenate(
            [
                compensate(rows(tensor, start, stop), kind, factors[expert])
                for expert, start, stop in _slabs(tensor, len(factors))
            ]
        )
        errors = self._errors(name, [plain, fed_back], kind)
        damp = max(each.damp for each in factors)
        if errors[1] < errors[0]:
            return Candidate(fed_back, errors[1], errors[0], "compensated", damp)
        return Candidate(plain, errors[0], errors[0], "imatrix", damp)

    def _errors(self, name: str, candidates: Sequence[Bytes], kind: GgmlType) -> list[float]:
        """The relative errors on held-out inputs; of the weights themselves where there are none."""
        tensor, known = self._tensors[name], name in self._statistics.names
        X = self._statistics.held_inputs(name) if known else None
        lost, told = [0.0] * len(candidates), 0.0
        for expert, start, stop in _slabs(tensor, 1 if X is None else len(X)):
            W = rows(tensor, start, stop)
            told += _power(W if X is None else W @ X[expert].T)
            for i, data in enumerate(candidates):
                E = W - _decode(data[start:stop], kind)
                lost[i] += _power(E if X is None else E @ X[expert].T)
        return [each / told if told > 0 else 0.0 for each in lost]

    def _make_factors(self, key: str) -> tuple[Factor, ...]:
        import torch

        try:
            H = self._statistics.hessian(f"{key}.weight")
            return tuple(factor(torch.from_numpy(each)) for each in H)
        except InputError as error:
            raise InputError(f"{key}: {error.message}", error.hint) from error


def _decode(data: Bytes, kind: GgmlType) -> Floats:
    decoded = gguf.quants.dequantize(data, gguf.GGMLQuantizationType(kind.ggml_id))
    return np.asarray(decoded, np.float32)


def _slabs(tensor: Any, experts: int) -> Iterator[tuple[int, int, int]]:
    """(expert, first row, last row + 1) in file order."""
    step = max(_SLAB_ROWS, _SLAB_WEIGHTS // row_length(tensor))
    per_expert = int(tensor.n_elements) // row_length(tensor) // experts
    for expert in range(experts):
        for start in range(0, per_expert, step):
            first = expert * per_expert
            yield expert, first + start, first + min(start + step, per_expert)


def _power(values: Floats) -> float:
    return float(np.square(values, dtype=np.float64).sum())


def _save(path: Path, made: Candidate) -> None:
    partial = path.with_suffix(f".partial-{os.getpid()}")
    with partial.open("wb") as stream:
        np.savez(
            stream,
            data=made.data,
            figures=np.array([made.error, made.imatrix_error, made.damp]),
            rounding=np.array(made.rounding),
        )
    partial.rename(path)


def _load(path: Path) -> Candidate:
    with np.load(path, allow_pickle=False) as stored:
        error, imatrix_error, damp = map(float, stored["figures"])
        rounding: Any = str(stored["rounding"])
        return Candidate(stored["data"], error, imatrix_error, rounding, damp)
