"""Read tar archives that others made, front to back, in bounded memory.

``tarfile`` reads a member's extension headers whole, however large they say they are: a few KB of gzip
can ask for gigabytes. Here they are limited, and so is a path's length.
Source: POSIX.1-2001 pax; GNU tar manual, "Basic Tar Format".
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

_MAX_EXTENSION_BYTES = 1 << 20
_MAX_PATH_BYTES = 4096
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)


class BrokenTarError(Exception):
    """The bytes are no tar archive, or one that no honest program writes."""


class Source(Protocol):
    """What an archive is read from."""

    def read(self, size: int, /) -> bytes:
        """The next bytes; fewer than asked for only at the end."""

    def skip(self, size: int, /) -> bool:
        """Go past the next bytes; False where there are not as many."""


@dataclass(frozen=True)
class Member:
    """One entry; ``size_bytes`` is the content's, which for a sparse file is more than is stored."""

    name: str
    kind: bytes
    mode: int
    uid: int
    gid: int
    size_bytes: int
    target: str

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return self.kind in tarfile.REGULAR_TYPES


class TarStream:
    """Iterate over an archive's members; ``head`` reads from the current one."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._left = 0
        self._padding = 0

    def __iter__(self) -> Iterator[Member]:
        """Raises ``BrokenTarError``; ends at the archive's end marker or at the end of the bytes."""
        extended: dict[str, str] = {}
        while (info := self._header()) is not None:
            if info.type in _PAX:
                extended |= _records(self._extension(info.size))
            elif info.type == tarfile.XGLTYPE:
                self._extension(info.size)
            elif info.type == tarfile.GNUTYPE_LONGNAME:
                extended["path"] = _text(self._extension(info.size))
            elif info.type == tarfile.GNUTYPE_LONGLINK:
                extended["linkpath"] = _text(self._extension(info.size))
            else:
                yield self._member(info, extended)
                extended = {}

    def head(self, size: int) -> bytes:
        """The next bytes of the current member's content, at most ``size``."""
        data = self._exactly(min(size, self._left))
        self._left -= len(data)
        return data

    def _member(self, info: tarfile.TarInfo, extended: dict[str, str]) -> Member:
        stored = _number(extended.get("size"), info.size)
        real = stored
        if info.type == tarfile.GNUTYPE_SPARSE:
            real = self._old_sparse()
        sparse = extended.get("GNU.sparse.realsize", extended.get("GNU.sparse.size"))
        real = _number(sparse, real)
        name = extended.get("GNU.sparse.name", extended.get("path", info.name))
        target = extended.get("linkpath", info.linkname)
        if max(len(name.encode("utf-8", "surrogateescape")), len(target)) > _MAX_PATH_BYTES:
            raise BrokenTarError(f"a path has more than {_MAX_PATH_BYTES} bytes")
        # Links may state the size of what they point to; no bytes follow them.
        has_data = info.type in tarfile.REGULAR_TYPES
        self._left = stored if has_data else 0
        self._padding = -self._left % tarfile.BLOCKSIZE
        size = real if has_data else 0
        return Member(name.rstrip("/"), info.type, info.mode, info.uid, info.gid, size, target)

    def _header(self) -> tarfile.TarInfo | None:
        self._skip(self._left + self._padding)
        self._left = self._padding = 0
        block = self._source.read(tarfile.BLOCKSIZE)
        if not block.strip(b"\0"):
            return None
        try:
            # The sparse map of the old GNU form stays in the block: see _old_sparse.
            self._block = block
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise BrokenTarError(str(error)) from error
        if info.size < 0:
            raise BrokenTarError(f"a member of {info.size} bytes")
        return info

    def _old_sparse(self) -> int:
        """Skip the blocks of the map; the file's real size."""
        real = tarfile.nti(self._block[483:495])  # type: ignore[attr-defined]  # not in the stubs
        more = self._block[482]
        while more:
            more = self._exactly(tarfile.BLOCKSIZE)[504]
        return int(real)

    def _extension(self, size: int) -> bytes:
        if size > _MAX_EXTENSION_BYTES:
            raise BrokenTarError(f"an extension header of {size} bytes")
        data = self._exactly(size)
        self._skip(-size % tarfile.BLOCKSIZE)
        return data

    def _exactly(self, size: int) -> bytes:
        data = self._source.read(size) if size else b""
        if len(data) != size:
            raise BrokenTarError("it ends within a member")
        return data

    def _skip(self, size: int) -> None:
        if size and not self._source.skip(size):
            raise BrokenTarError("it ends within a member")


def _records(data: bytes) -> dict[str, str]:
    """Pax records: ``LENGTH KEY=VALUE\\n``, the length counting all of it."""
    found: dict[str, str] = {}
    while data:
        digits, space, _ = data[:20].partition(b" ")
        if not space or not digits.isdigit() or not len(digits) + 3 <= int(digits) <= len(data):
            raise BrokenTarError("a damaged extension header")
        key, equals, value = data[len(digits) + 1 : int(digits) - 1].partition(b"=")
        if not equals or data[int(digits) - 1 : int(digits)] != b"\n":
            raise BrokenTarError("a damaged extension header")
        found[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        data = data[int(digits) :]
    return found


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _number(text: str | None, default: int) -> int:
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise BrokenTarError(f"a size of {text[:20]!r}")
    return int(text)
