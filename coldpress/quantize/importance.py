"""The imatrix as quantizing needs it: held against the model, and per tensor."""

from pathlib import Path
from typing import Any

from coldpress.calibrate import imatrix
from coldpress.calibrate.imatrix import Imatrix
from coldpress.errors import InputError
from coldpress.quantize.layout import Metadata
from coldpress.quantize.source import is_quantizable, row_length

# Looked up by token; also the head in models with tied embeddings.
_EMBEDDINGS = ("token_embd.weight", "output.weight")
_HINT = "calibrate this model; the imatrix was made for another one"


def read(path: Path, reader: Any) -> Imatrix:
    """Read an imatrix, a file or an artifact, for the model in ``reader``.

    Raises:
        InputError: not an imatrix, or one of the model's matrices is missing or has another shape.
    """
    weights = imatrix.read(path / "imatrix.gguf" if path.is_dir() else path)
    for tensor in filter(is_quantizable, reader.tensors):
        known = weights.importance(tensor.name)
        if known is None and tensor.name not in _EMBEDDINGS:
            raise InputError(f"{path} has nothing on {tensor.name}", _HINT)
        experts = int(tensor.shape[2]) if len(tensor.shape) > 2 else 1
        if known is not None and known.shape != (experts, row_length(tensor)):
            raise InputError(f"{path} has {known.shape[1]} inputs for {tensor.name}", _HINT)
    return weights


def metadata(weights: Imatrix | None) -> Metadata:
    """The keys that llama-quantize adds; the file's name only, so that no path is in the bytes."""
    if weights is None:
        return {}
    return {
        "quantize.imatrix.file": "imatrix.gguf",
        **({"quantize.imatrix.dataset": weights.datasets[0]} if weights.datasets else {}),
        "quantize.imatrix.entries_count": len(weights.sums),
        "quantize.imatrix.chunks_count": weights.chunk_count,
    }
