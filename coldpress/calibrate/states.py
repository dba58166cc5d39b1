"""Hidden states of every sequence, in a file while one block after the other works on them."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch


@dataclass(frozen=True)
class Batch:
    """Sequences ``start`` to ``stop`` of those in order: to fit first, then held-out."""

    start: int
    stop: int
    held: bool


def batches(sequences: int, held: int, size: int) -> list[Batch]:
    """Batches of at most ``size`` sequences, none both to fit to and held-out."""
    first = sequences - held
    spans = [(start, min(start + size, first), False) for start in range(0, first, size)]
    spans += [(at, min(at + size, sequences), True) for at in range(first, sequences, size)]
    return [Batch(*span) for span in spans]


class States:
    """Hidden states of all sequences in a file without a name, (sequences, context, width) float32."""

    def __init__(self, folder: Path, context: int, device: torch.device) -> None:
        """Keep the file in ``folder``; what is read comes on ``device``."""
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # closed by __exit__
        self._context, self._width = context, 0
        self.device = device

    def __enter__(self) -> "States":
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()

    def read(self, batch: Batch) -> torch.Tensor:
        """A batch's states."""
        hidden = np.empty((batch.stop - batch.start, self._context, self._width), np.float32)
        self._file.seek(batch.start * hidden[0].nbytes)
        self._file.readinto(hidden.data)
        return torch.from_numpy(hidden).to(self.device)

    def write(self, batch: Batch, hidden: torch.Tensor) -> None:
        """Replace a batch's states."""
        self._width = hidden.shape[-1]
        values = hidden.float().contiguous().cpu().numpy()
        self._file.seek(batch.start * values[0].nbytes)
        self._file.write(values.data)
