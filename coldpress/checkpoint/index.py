"""``model.index.json``: where every tensor lies, for readers of ranges, and the files' digests.

It serves GGUF files and safetensors files alike; what it says of types is the files' business.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coldpress.checkpoint import chunks
from coldpress.checkpoint.gguf_header import Header
from coldpress.errors import IntegrityError

FORMAT_VERSION = 1
GGUF_NAME = "model.gguf"
INDEX_NAME = "model.index.json"
# Ten times the index of a model of 400 billion weights.
_MAX_BYTES = 32 << 20
_MAX_SIZE = 1 << 62
_MAX_CHUNK_BYTES = 1 << 30
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[^/\\\0]{1,255}")


@dataclass(frozen=True)
class Range:
    """One tensor's place; ``file`` is a number in ``Index.files``, ``offset`` counts from its start."""

    file: int
    type: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


@dataclass(frozen=True)
class IndexedFile:
    """One file: ``sha256`` is of all of it, ``header_sha256`` of what is before ``data_offset``."""

    name: str
    size_bytes: int
    sha256: str
    header_sha256: str
    data_offset: int
    data_bytes: int
    chunk_sha256: tuple[str, ...]
    root_sha256: str


@dataclass(frozen=True)
class Index:
    """The side file of a checkpoint; ``root_sha256`` is over the chunks of all files in order."""

    format_version: int
    chunk_bytes: int
    root_sha256: str
    files: tuple[IndexedFile, ...]
    tensors: dict[str, Range]


def make(chunk_bytes: int, files: Iterable[IndexedFile], tensors: dict[str, Range]) -> Index:
    """Put an index together."""
    files = tuple(files)
    root = chunks.root(digest for file in files for digest in file.chunk_sha256)
    return Index(FORMAT_VERSION, chunk_bytes, root, files, tensors)


def ranges(header: Header, file: int) -> dict[str, Range]:
    """The range of every tensor of a file, in its order."""
    return {
        tensor.name: Range(
            file, tensor.type, tensor.shape, header.data_offset + tensor.offset, tensor.size_bytes
        )
        for tensor in header.tensors
    }


def write(path: Path, index: Index) -> None:
    """Write an index as JSON, keys in the order of the dataclass."""
    path.write_text(json.dumps(asdict(index), indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> Index:
    """Read an index; keys that this version does not know are passed over.

    Raises:
        IntegrityError: it cannot be read as one, or what it says contradicts itself.
    """
    try:
        with path.open("rb") as stream:
            raw = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise IntegrityError(f"{path}: {error.strerror}", "fetch it again") from error
    if len(raw) > _MAX_BYTES:
        raise IntegrityError(f"{path} is larger than {_MAX_BYTES} bytes", "fetch it again")
    return parse(raw, str(path))


def parse(raw: bytes, where: str) -> Index:
    """Read an index's bytes; as ``read``."""
    try:
        data = json.loads(raw)
        version = _integer(data["format_version"], 0, _MAX_SIZE)
        if version == FORMAT_VERSION:
            return _checked(data)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise IntegrityError(f"{where} is damaged: {_say(error)}", "fetch it again") from error
    raise IntegrityError(
        f"{where} has format {version}, this reads {FORMAT_VERSION}",
        "use the coldpress that wrote it, or build it again",
    )


def _checked(data: Any) -> Index:
    chunk_bytes = _integer(data["chunk_bytes"], 1, _MAX_CHUNK_BYTES)
    files = tuple(_file(file, chunk_bytes) for file in _list(data["files"]))
    if len({file.name for file in files}) != len(files) or not files:
        raise ValueError("files has no file, or one twice")
    if not isinstance(data["tensors"], dict):
        raise TypeError("tensors is no object")
    tensors = {name: _range(name, place, files) for name, place in data["tensors"].items()}
    made = make(chunk_bytes, files, tensors)
    if made.root_sha256 != _sha256(data["root_sha256"]):
        raise ValueError("root_sha256 is not that of the chunks")
    return made


def _file(data: Any, chunk_bytes: int) -> IndexedFile:
    file = IndexedFile(
        name=_name(data["name"]),
        size_bytes=_integer(data["size_bytes"], 0, _MAX_SIZE),
        sha256=_sha256(data["sha256"]),
        header_sha256=_sha256(data["header_sha256"]),
        data_offset=_integer(data["data_offset"], 0, _MAX_SIZE),
        data_bytes=_integer(data["data_bytes"], 0, _MAX_SIZE),
        chunk_sha256=tuple(_sha256(digest) for digest in _list(data["chunk_sha256"])),
        root_sha256=_sha256(data["root_sha256"]),
    )
    if file.data_offset + file.data_bytes != file.size_bytes:
        raise ValueError(f"{file.name}: header and data are not the whole file")
    if len(file.chunk_sha256) != -(-file.data_bytes // chunk_bytes):
        raise ValueError(f"{file.name}: {len(file.chunk_sha256)} chunks do not make its data")
    if chunks.root(file.chunk_sha256) != file.root_sha256:
        raise ValueError(f"{file.name}: root_sha256 is not that of the chunks")
    return file


def _range(name: str, data: Any, files: tuple[IndexedFile, ...]) -> Range:
    place = Range(
        file=_integer(data["file"], 0, len(files) - 1),
        type=_name(data["type"]),
        shape=tuple(_integer(dim, 0, _MAX_SIZE) for dim in _list(data["shape"])),
        offset=_integer(data["offset"], 0, _MAX_SIZE),
        size_bytes=_integer(data["size_bytes"], 0, _MAX_SIZE),
    )
    file = files[place.file]
    if not file.data_offset <= place.offset <= file.size_bytes - place.size_bytes:
        raise ValueError(f"{name} is not inside the data of {file.name}")
    return place


def _integer(value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{str(value)[:40]!r} is no integer")
    if not low <= value <= high:
        raise ValueError(f"{str(value)[:40]} is not from {low} to {high}")
    return value


def _sha256(value: object) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise ValueError(f"{str(value)[:40]!r} is no sha256")
    return value


def _name(value: object) -> str:
    """A name without a folder in it: an index must not lead a reader elsewhere."""
    if not isinstance(value, str) or not _NAME.fullmatch(value) or value in (".", ".."):
        raise ValueError(f"{str(value)[:40]!r} is no name")
    value.encode()  # half a surrogate pair is no name either
    return value


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{str(value)[:40]!r} is no list")
    return value


def _say(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)
