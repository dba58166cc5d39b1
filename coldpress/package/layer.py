"""Image layers: a tar with nothing of the machine in it, hashed and compressed in one pass.

The tar and the blob are hashed by a thread each, beside the one that reads and writes.

Entries are sorted, owned by root, dated 1970, readable by everyone, and every parent folder has its
own entry: Lambda's unpacker refuses a layer without them, docker's does not.
Source: OCI image specification 1.1, layer.md; RFC 1951 and 1952.
"""

import hashlib
import io
import tarfile
import zlib
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Literal, assert_never

from coldpress.artifact import sha256_file
from coldpress.progress import Tick

Compression = Literal["stored", "deflate"]

_DEFLATE_LEVEL = 6
_COPY_BYTES = 1 << 20
_STORED_MAX = 65535
_SMALL = 1 << 16
_AHEAD = 8  # pieces of _COPY_BYTES
# Magic, deflate, no flags, no time, no extra flags, operating system unknown.
_GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"


@dataclass(frozen=True)
class File:
    """A regular file; ``path`` is inside the image, without a leading slash."""

    path: str
    source: Path | bytes
    executable: bool = False

    @property
    def size_bytes(self) -> int:
        """Bytes of its content."""
        source = self.source
        return len(source) if isinstance(source, bytes) else source.stat().st_size

    @property
    def sha256(self) -> str:
        """Sha256 of its content."""
        source = self.source
        if isinstance(source, bytes):
            return hashlib.sha256(source).hexdigest()
        return sha256_file(source)


@dataclass(frozen=True)
class Folder:
    """A folder; those that hold other entries need not be listed."""

    path: str
    mode: int = 0o755


@dataclass(frozen=True)
class Symlink:
    """A symbolic link."""

    path: str
    target: str


Entry = File | Folder | Symlink


@dataclass(frozen=True)
class Layer:
    """A written layer: ``digest`` of the blob, ``diff_id`` of the tar inside it."""

    digest: str
    diff_id: str
    size_bytes: int
    unpacked_bytes: int


def complete(entries: Iterable[Entry]) -> list[Entry]:
    """Add the missing parent folders and sort, parents first.

    Raises:
        ValueError: two entries have the same path.
    """
    found: dict[str, Entry] = {}
    for entry in entries:
        if entry.path in found:
            raise ValueError(f"two entries for {entry.path}")
        found[entry.path] = entry
    for path in list(found):
        for parent in PurePosixPath(path).parents[:-1]:
            found.setdefault(str(parent), Folder(str(parent)))
    return [found[path] for path in sorted(found, key=lambda path: path.split("/"))]


def unpacked_bytes(entries: Iterable[Entry]) -> int:
    """Bytes of all regular files."""
    return sum(entry.size_bytes for entry in entries if isinstance(entry, File))


def write(
    entries: Iterable[Entry],
    out: IO[bytes],
    compression: Compression,
    tick: Tick = lambda _bytes: None,
) -> Layer:
    """Write a gzip-compressed tar of ``entries`` to ``out`` in one pass.

    Args:
        compression: ``stored`` is legal gzip that copies its input: for weights, which do not
            compress.
        tick: is told how many bytes were taken.
    """
    ordered = complete(entries)
    with Sha256() as plain, Sha256() as blob:
        return _write(ordered, _Gzip(out, compression, tick, plain, blob))


def _write(ordered: list[Entry], stream: "_Gzip") -> Layer:
    with tarfile.open(
        fileobj=stream,  # type: ignore[call-overload]  # needs no more than write()
        mode="w",
        format=tarfile.PAX_FORMAT,
        copybufsize=_COPY_BYTES,
    ) as tar:
        for entry in ordered:
            _add(tar, entry)
    stream.finish()
    return Layer(
        digest=f"sha256:{stream.blob.hexdigest()}",
        diff_id=f"sha256:{stream.plain.hexdigest()}",
        size_bytes=stream.size_bytes,
        unpacked_bytes=unpacked_bytes(ordered),
    )


def _add(tar: tarfile.TarFile, entry: Entry) -> None:
    info = tarfile.TarInfo(entry.path)
    match entry:
        case Folder():
            info.type, info.mode = tarfile.DIRTYPE, entry.mode
            tar.addfile(info)
        case Symlink():
            info.type, info.mode, info.linkname = tarfile.SYMTYPE, 0o777, entry.target
            tar.addfile(info)
        case File():
            info.mode = 0o755 if entry.executable else 0o644
            info.size = entry.size_bytes
            source = entry.source
            with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as data:
                tar.addfile(info, data)
        case _:
            assert_never(entry)


class Sha256:
    """A sha256 that a thread of its own computes: hashlib lets other threads run meanwhile.

    A context manager; at most ``_AHEAD`` pieces wait for it.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> "Sha256":
        return self

    def __exit__(self, *_error: object) -> None:
        self._thread.shutdown()

    def update(self, data: bytes) -> None:
        """Take the next bytes, which must not change."""
        if len(data) < _SMALL:  # Handing it over would take longer.
            self._catch_up(0)
            self._hash.update(data)
            return
        self._catch_up(_AHEAD)
        self._waiting.append(self._thread.submit(self._hash.update, data))

    def hexdigest(self) -> str:
        """The digest of all that was taken."""
        self._catch_up(0)
        return self._hash.hexdigest()

    def _catch_up(self, waiting: int) -> None:
        while len(self._waiting) > waiting:
            self._waiting.popleft().result()


class _Gzip:
    """Compresses what is written to it and hashes both sides."""

    def __init__(
        self, out: IO[bytes], compression: Compression, tick: Tick, plain: Sha256, blob: Sha256
    ) -> None:
        self.out, self.plain, self.blob = out, plain, blob
        self.size_bytes = 0
        self._tick = tick
        self._crc = 0
        self._length = 0
        self._deflate = _Stored() if compression == "stored" else _deflate()
        self._emit(_GZIP_HEADER)

    def write(self, data: bytes) -> int:
        self.plain.update(data)
        self._crc = zlib.crc32(data, self._crc)
        self._length += len(data)
        self._emit(self._deflate.compress(data))
        self._tick(len(data))
        return len(data)

    def finish(self) -> None:
        self._emit(self._deflate.flush())
        self._emit(self._crc.to_bytes(4, "little"))
        self._emit((self._length & 0xFFFFFFFF).to_bytes(4, "little"))

    def tell(self) -> int:
        return self._length

    def _emit(self, data: bytes) -> None:
        if data:
            self.blob.update(data)
            self.size_bytes += len(data)
            self.out.write(data)


class _Stored:
    """Deflate's stored blocks, of 65,535 bytes: zlib's level 0 cuts them as its version likes."""

    def __init__(self) -> None:
        self._pending = b""

    def compress(self, data: bytes) -> bytes:
        """Return the whole blocks that are complete."""
        data = self._pending + data
        whole = (len(data) - 1) // _STORED_MAX * _STORED_MAX if data else 0
        view = memoryview(data)
        parts: list[bytes | memoryview] = []
        for start in range(0, whole, _STORED_MAX):
            parts += [_block(_STORED_MAX, last=False), view[start : start + _STORED_MAX]]
        self._pending = data[whole:]
        return b"".join(parts)

    def flush(self) -> bytes:
        """Return the last block."""
        return _block(len(self._pending), last=True) + self._pending


def _block(size: int, *, last: bool) -> bytes:
    return bytes([last]) + size.to_bytes(2, "little") + (size ^ 0xFFFF).to_bytes(2, "little")


def _deflate() -> "zlib._Compress":
    return zlib.compressobj(_DEFLATE_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
