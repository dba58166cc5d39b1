"""What a checkpoint consists of, for the loader: files, and the pieces that can be proven one by one.

Reads ``model.index.json`` without ``coldpress.checkpoint``, whose imports would take as long as the
first bytes need to arrive; docs/checkpoint-format.md is the contract of both.
"""

import json
import re
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from coldpress.errors import IntegrityError

INDEX_NAME = "model.index.json"
MAX_INDEX_BYTES = 64 << 20
_FORMAT_VERSION = 1
_NAME = re.compile(r"model(-\d{5}-of-\d{5})?\.gguf")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_FILES = 1000
_AGAIN = "fetch or build the checkpoint again"


@dataclass(frozen=True)
class Piece:
    """Bytes ``[start, end)`` of a file and their digest; None where nobody recorded one."""

    start: int
    end: int
    sha256: str | None


@dataclass(frozen=True)
class File:
    """One GGUF: its header is the first piece, its chunks follow in execution order."""

    name: str
    size_bytes: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Contents:
    """A model's files; ``root_sha256`` names the whole, None without digests."""

    files: tuple[File, ...]
    root_sha256: str | None

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self.files)


def parse(data: bytes, where: str) -> Contents:
    """Read an index.

    Raises:
        IntegrityError: it is not one, or it contradicts itself.
    """
    try:
        index = json.loads(data)
        if index["format_version"] != _FORMAT_VERSION:
            raise IntegrityError(
                f"{where} has format {index['format_version']}, this reads {_FORMAT_VERSION}",
                "use the coldpress that wrote it, or build it again",
            )
        entries = index["files"]
        _need(isinstance(entries, list) and 0 < len(entries) <= _MAX_FILES, "its files")
        chunk_bytes = _count(index["chunk_bytes"], "chunk_bytes", least=1)
        files = tuple(_file(entry, chunk_bytes) for entry in entries)
        _need(len({file.name for file in files}) == len(files), "a file is listed twice")
        _need(_root(entries) == index["root_sha256"], "its root is not of its chunks")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IntegrityError(f"{where} is not an index: {error}", _AGAIN) from error
    return Contents(files, index["root_sha256"])


def chunked(
    name: str, data_offset: int, end: int, chunk_bytes: int, digests: tuple[str, ...] | None
) -> File:
    """A file of which the header has been read and checked already."""
    starts = range(data_offset, end, chunk_bytes)
    proofs = digests or (None,) * len(starts)
    chunks = (
        Piece(start, min(start + chunk_bytes, end), proof)
        for start, proof in zip(starts, proofs, strict=True)
    )
    return File(name, end, (Piece(0, data_offset, None), *chunks))


def _file(entry: dict[str, Any], chunk_bytes: int) -> File:
    name = entry["name"]
    _need(isinstance(name, str) and _NAME.fullmatch(name) is not None, f"a file named {name!r}")
    data_offset = _count(entry["data_offset"], "data_offset", least=1)
    data_bytes = _count(entry["data_bytes"], "data_bytes", least=1)
    end = data_offset + data_bytes
    _need(_count(entry["size_bytes"], "size_bytes", least=1) == end, f"{name}'s size")
    digests = entry["chunk_sha256"]
    _need(isinstance(digests, list), f"{name}'s chunks")
    _need(len(digests) == -(-data_bytes // chunk_bytes), f"{name} has {len(digests)} chunks")
    for digest in (entry["header_sha256"], *digests):
        _need(isinstance(digest, str) and _SHA256.fullmatch(digest) is not None, "a digest")
    file = chunked(name, data_offset, end, chunk_bytes, tuple(digests))
    return File(name, end, (Piece(0, data_offset, entry["header_sha256"]), *file.pieces[1:]))


def _root(entries: list[dict[str, Any]]) -> str:
    digests = (bytes.fromhex(digest) for entry in entries for digest in entry["chunk_sha256"])
    return sha256(b"".join(digests)).hexdigest()


def _count(number: Any, what: str, *, least: int) -> int:
    _need(type(number) is int and least <= number < 1 << 62, f"{what} is {number!r}")
    return int(number)


def _need(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)
