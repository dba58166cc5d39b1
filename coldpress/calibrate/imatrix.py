"""llama.cpp's importance matrix: E[x²] per input of every linear layer, in its GGUF form.

Per layer two F32 tensors: ``NAME.in_sum2``, (experts, inputs), the sum of x² over the tokens, and
``NAME.counts``, (experts, 1), the number of tokens. Source: llama.cpp's tools/imatrix/imatrix.cpp
and common/imatrix-loader.cpp.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from coldpress.errors import InputError

Floats = npt.NDArray[np.float32]

_SUMS, _COUNTS = ".in_sum2", ".counts"
_DATASETS, _CHUNK_COUNT = "imatrix.datasets", "imatrix.chunk_count"
_CHUNK_SIZE = "imatrix.chunk_size"


@dataclass(frozen=True)
class Imatrix:
    """Sums of squared inputs by the weight's GGUF name.

    ``sums`` are (experts, inputs) and ``counts`` (experts,), with one expert for a plain matrix;
    a chunk is one sequence of ``chunk_size`` tokens.
    """

    sums: dict[str, Floats]
    counts: dict[str, Floats]
    datasets: tuple[str, ...]
    chunk_count: int
    chunk_size: int

    def importance(self, name: str) -> Floats | None:
        """E[x²], (experts, inputs); ones for an expert without a token; None if unknown."""
        if name not in self.sums:
            return None
        counts = self.counts[name][:, None]
        return np.where(counts > 0, self.sums[name] / np.maximum(counts, 1), np.float32(1))


def from_moments(
    sums: Mapping[str, Floats],
    counts: Mapping[str, Any],
    dataset: str,
    chunk_size: int,
    chunks: int,
) -> Imatrix:
    """An imatrix from Σ x², (experts, inputs) each, and the numbers of tokens, (experts,)."""
    return Imatrix(
        sums=dict(sums),
        counts={name: np.asarray(each, dtype=np.float32) for name, each in counts.items()},
        datasets=(dataset,),
        chunk_count=chunks,
        chunk_size=chunk_size,
    )


class _Writer(gguf.GGUFWriter):  # type: ignore[misc]  # gguf ships no types
    def add_architecture(self) -> None:
        """An imatrix has no architecture."""


def write(path: Path, imatrix: Imatrix) -> None:
    """Write an imatrix as llama-imatrix does: tensors by name, sums before counts."""
    writer = _Writer(path, "")
    writer.add_type("imatrix")
    writer.add_array(_DATASETS, list(imatrix.datasets))
    writer.add_uint32(_CHUNK_COUNT, imatrix.chunk_count)
    writer.add_uint32(_CHUNK_SIZE, imatrix.chunk_size)
    for name in sorted(imatrix.sums):
        writer.add_tensor(name + _SUMS, imatrix.sums[name])
        writer.add_tensor(name + _COUNTS, imatrix.counts[name][:, None])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read(path: Path) -> Imatrix:
    """Read an imatrix that we, llama-imatrix or another tool wrote.

    Raises:
        InputError: it is not an imatrix in GGUF form, is incomplete or not finite.
    """
    try:
        reader = gguf.GGUFReader(path)
        data = {tensor.name: np.array(tensor.data, dtype=np.float32) for tensor in reader.tensors}
        chunks = {key: int(reader.fields[key].contents()) for key in (_CHUNK_COUNT, _CHUNK_SIZE)}
        datasets = tuple(reader.fields[_DATASETS].contents())
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise InputError(f"{path} is not an imatrix in GGUF form: {error}", _HINT) from error
    names = [name.removesuffix(_SUMS) for name in data if name.endswith(_SUMS)]
    if not names or any(name + _COUNTS not in data for name in names):
        raise InputError(f"{path} lacks the sums or counts of an imatrix", _HINT)
    if not all(np.isfinite(values).all() for values in data.values()):
        raise InputError(f"{path} holds an infinity or a NaN", _HINT)
    return Imatrix(
        sums={name: np.atleast_2d(data[name + _SUMS]) for name in names},
        counts={name: data[name + _COUNTS].reshape(-1) for name in names},
        datasets=datasets,
        chunk_count=chunks[_CHUNK_COUNT],
        chunk_size=chunks[_CHUNK_SIZE],
    )


_HINT = "make one with `coldpress calibrate` or llama-imatrix"
