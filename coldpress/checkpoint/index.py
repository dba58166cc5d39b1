"""``model.index.json``: where every tensor lies, for readers of ranges, and the file's digests."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from coldpress.checkpoint.gguf_header import Header
from coldpress.errors import IntegrityError

FORMAT_VERSION = 1
GGUF_NAME = "model.gguf"
INDEX_NAME = "model.index.json"


@dataclass(frozen=True)
class Range:
    """One tensor's place; ``offset`` counts from the start of the file."""

    type: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


@dataclass(frozen=True)
class Index:
    """The side file of a checkpoint. ``sha256`` is of the whole GGUF, ``header_sha256`` of what is
    before ``data_offset``; tensors are in the file's order."""

    size_bytes: int
    sha256: str
    header_sha256: str
    data_offset: int
    data_bytes: int
    chunk_bytes: int
    chunk_sha256: tuple[str, ...]
    root_sha256: str
    tensors: dict[str, Range]
    format_version: int = FORMAT_VERSION


def ranges(header: Header) -> dict[str, Range]:
    """Every tensor's range, in the file's order."""
    return {
        tensor.name: Range(
            tensor.type, tensor.shape, header.data_offset + tensor.offset, tensor.size_bytes
        )
        for tensor in header.tensors
    }


def write(path: Path, index: Index) -> None:
    """Write an index as JSON, keys in the order of the dataclass."""
    path.write_text(json.dumps(asdict(index), indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> Index:
    """Read an index.

    Raises:
        IntegrityError: it cannot be read as one.
    """
    try:
        data = json.loads(path.read_bytes())
        tensors = {
            name: Range(**{**place, "shape": tuple(place["shape"])})
            for name, place in data.pop("tensors").items()
        }
        chunk_sha256 = tuple(data.pop("chunk_sha256"))
        index = Index(tensors=tensors, chunk_sha256=chunk_sha256, **data)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise IntegrityError(f"{path} is damaged: {error}", "fetch it again") from error
    if index.format_version != FORMAT_VERSION:
        raise IntegrityError(
            f"{path} has format {index.format_version}, this reads {FORMAT_VERSION}",
            "use the coldpress that wrote it, or build it again",
        )
    return index
