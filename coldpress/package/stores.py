"""Where an image's files lie: a folder, or a tar archive that is read in place."""

import os
import re
from pathlib import Path
from typing import IO, Protocol

from coldpress.errors import InputError
from coldpress.package.tarstream import BrokenTarError, TarStream

_MAX_FILES = 10_000
_NOT_PLAIN = {b"\x1f\x8b": "gzip", b"\x28\xb5": "zstd", b"\xfd7": "xz", b"BZ": "bzip2"}
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Store(Protocol):
    """Files by name, such as ``index.json`` and ``blobs/sha256/…``."""

    name: str

    def size_bytes(self, name: str) -> int | None:
        """A file's size, or None where there is no such file."""

    def open(self, name: str, start: int = 0) -> IO[bytes]:
        """A file's content from a byte on, to be read once; the caller closes it."""


def open_store(path: Path) -> Store:
    """The files of an image folder or archive.

    Raises:
        InputError: there is none, or the archive is compressed or damaged.
    """
    if path.is_dir():
        return Folder(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist", "give an OCI layout or an image archive")
    return Archive(path)


def blob_name(digest: object) -> str:
    """Where a layout keeps the blob of a digest.

    Raises:
        InputError: it is no sha256 digest.
    """
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise InputError(f"an unusual digest, {digest!r}", "only sha256 is read")
    return f"blobs/sha256/{digest[7:]}"


class Folder:
    """A folder; names come from ``blob_name`` or from code, so none can leave it."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path

    def size_bytes(self, name: str) -> int | None:
        """As ``Store``."""
        path = self._path / name
        return path.stat().st_size if path.is_file() else None

    def open(self, name: str, start: int = 0) -> IO[bytes]:
        """As ``Store``."""
        stream = (self._path / name).open("rb")
        stream.seek(start)
        return stream


class Archive:
    """An uncompressed tar; its members are found once and then read where they lie."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        try:
            self._places = _places(path)
        except (BrokenTarError, OSError) as error:
            raise InputError(
                f"{path} is not an image archive: {error}",
                "give an OCI archive or what `docker save` wrote",
            ) from error

    def size_bytes(self, name: str) -> int | None:
        """As ``Store``."""
        place = self._places.get(name)
        return None if place is None else place[1]

    def open(self, name: str, start: int = 0) -> IO[bytes]:
        """As ``Store``."""
        offset, size = self._places[name]
        return _Part(self._path, offset + start, size - start)  # type: ignore[return-value]


class _Seeking:
    """An archive on disk in which content is skipped, not read."""

    def __init__(self, stream: IO[bytes], size_bytes: int) -> None:
        self._stream = stream
        self._size_bytes = size_bytes
        self.read = stream.read

    def skip(self, size: int) -> bool:
        return self._stream.seek(size, os.SEEK_CUR) <= self._size_bytes


def _places(path: Path) -> dict[str, tuple[int, int]]:
    """Member → (offset, size); links of older `docker save` lead to what they point to."""
    found: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    with path.open("rb") as stream:
        start = stream.read(2)
        if start in _NOT_PLAIN:
            raise BrokenTarError(f"it is compressed by {_NOT_PLAIN[start]}; unpack it first")
        stream.seek(0)
        for member in TarStream(_Seeking(stream, path.stat().st_size)):
            if len(found) + len(links) >= _MAX_FILES:
                raise BrokenTarError(f"it has more than {_MAX_FILES} members")
            name = member.name.removeprefix("./")
            if member.is_file:
                found[name] = stream.tell(), member.size_bytes
            elif member.target:
                folder = name.rpartition("/")[0] if member.kind == b"2" else ""
                links[name] = _joined(folder, member.target)
    return found | {name: found[to] for name, to in links.items() if to in found}


def _joined(folder: str, target: str) -> str:
    parts: list[str] = []
    for part in f"{folder}/{target}".split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


class _Part:
    """A slice of a file."""

    def __init__(self, path: Path, offset: int, size: int) -> None:
        self._stream = path.open("rb")
        self._stream.seek(offset)
        self._left = size

    def read(self, size: int = -1) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        data = self._stream.read(wanted)
        self._left -= len(data)
        return data

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> "_Part":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
