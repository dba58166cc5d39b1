"""What quantizing did to each tensor, read back from the written file."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from coldpress.calibrate.imatrix import Floats, Imatrix
from coldpress.quantize.source import is_quantizable, row_length, rows
from coldpress.quantize.types import GgmlType

_SLAB_WEIGHTS = 1 << 22


@dataclass(frozen=True)
class Note:
    """How a tensor came about, see ``bank.Candidate``; ``kl_nats`` is its own share of the KL."""

    rounding: str | None = None
    held_out_error: float | None = None
    imatrix_held_out_error: float | None = None
    damp: float | None = None
    kl_nats: float | None = None


@dataclass(frozen=True)
class TensorRecord:
    """One tensor of the written file.

    ``relative_rms_error`` is √(Σ w(x−q)² / Σ w x²) against the source, w the imatrix's E[x²] of the
    input or 1; 0 for a tensor that was copied. ``weighted`` says whether the imatrix was used.
    ``instead_of`` is the type asked for where its blocks do not divide the rows. The last five are of a
    tensor from a bank, see ``Note``.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    size_bytes: int
    relative_rms_error: float
    weighted: bool
    instead_of: str | None
    rounding: str | None
    held_out_error: float | None
    imatrix_held_out_error: float | None
    damp: float | None
    kl_nats: float | None


def measure(
    source: Any,
    written: Any,
    imatrix: Imatrix | None,
    asked: GgmlType | None,
    note: Note | None = None,
) -> TensorRecord:
    """Compare a written tensor with its source, both tensors of a GGUFReader.

    Args:
        asked: the type that was asked for, or a preset's base type; None for a searched plan.
    """
    note = note or Note()
    importance = imatrix.importance(written.name) if imatrix is not None else None
    divides = asked is None or row_length(source) % asked.block_size == 0
    changed = source.tensor_type != written.tensor_type
    return TensorRecord(
        name=written.name,
        type=written.tensor_type.name,
        shape=tuple(int(length) for length in reversed(written.shape)),
        size_bytes=int(written.n_bytes),
        relative_rms_error=relative_error(source, written, importance) if changed else 0.0,
        weighted=changed and importance is not None,
        instead_of=asked.name if asked and not divides and is_quantizable(source) else None,
        rounding=note.rounding,
        held_out_error=note.held_out_error,
        imatrix_held_out_error=note.imatrix_held_out_error,
        damp=note.damp,
        kl_nats=note.kl_nats,
    )


def relative_error(source: Any, written: Any, importance: Floats | None) -> float:
    """√(Σ w(x−q)² / Σ w x²) in float64, to six digits; slab by slab.

    Args:
        importance: w, (experts, inputs), or None for ones.
    """
    length = row_length(source)
    total = int(source.n_elements) // length
    step = max(1, _SLAB_WEIGHTS // length)
    error = power = 0.0
    for start in range(0, total, step):
        stop = min(start + step, total)
        x = rows(source, start, stop).astype(np.float64)
        q = rows(written, start, stop).astype(np.float64)
        w = 1.0 if importance is None else _by_row(importance, start, stop, total)
        error += float((w * (x - q) ** 2).sum())
        power += float((w * x**2).sum())
    return float(f"{math.sqrt(error / power):.6g}") if power > 0 else 0.0


def _by_row(importance: Floats, start: int, stop: int, total: int) -> Floats:
    """The importance of each row's inputs, (rows, inputs)."""
    return importance[np.arange(start, stop) // (total // len(importance))]
