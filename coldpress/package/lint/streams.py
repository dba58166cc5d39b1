"""A layer's bytes: hashed as they are stored and as they unpack, never held, never beyond a limit."""

import hashlib
import zlib
from typing import IO

GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_PIECE = 1 << 20
# Deflate cannot exceed 1,032; real layers stay below 20. Small ones may do as they like.
_MAX_RATIO = 200
_HARMLESS_BYTES = 1 << 30


class BombError(Exception):
    """It unpacks to absurdly many bytes."""


class BrokenLayerError(Exception):
    """It cannot be decompressed."""


class Blob:
    """The stored bytes."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._sha256 = hashlib.sha256()
        self.size_bytes = 0
        self.start = self._fetch(_PIECE)
        self._pending = self.start

    def read(self) -> bytes:
        """The next piece, empty at the end."""
        data, self._pending = self._pending or self._fetch(_PIECE), b""
        return data

    def drain(self) -> None:
        """Read the rest for the digest's sake."""
        while self.read():
            pass

    @property
    def digest(self) -> str:
        """Of what was read so far."""
        return f"sha256:{self._sha256.hexdigest()}"

    def _fetch(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._sha256.update(data)
        self.size_bytes += len(data)
        return data


class Unpacked:
    """The tar inside a blob: gzip, of any number of members, or nothing around it."""

    def __init__(self, blob: Blob, limit_bytes: int) -> None:
        self._blob = blob
        self._limit_bytes = limit_bytes
        self._gzip = blob.start[:2] == GZIP
        self._inflate = zlib.decompressobj(31)
        self._input = b""
        self._buffer, self._at = b"", 0
        self._sha256 = hashlib.sha256()
        self.size_bytes = 0

    @property
    def diff_id(self) -> str:
        """Of what was read so far; without gzip it is the blob's own."""
        return f"sha256:{self._sha256.hexdigest()}" if self._gzip else self._blob.digest

    def read(self, size: int) -> bytes:
        """The next bytes; fewer than asked for only at the end.

        Raises:
            BrokenLayerError: the gzip data is damaged or ends early.
            BombError: there are too many.
        """
        parts = []
        while size and self._filled():
            parts.append(self._buffer[self._at : self._at + size])
            self._at += len(parts[-1])
            size -= len(parts[-1])
        return b"".join(parts)

    def skip(self, size: int) -> bool:
        """Go past the next bytes; False where there are not as many."""
        while size and self._filled():
            step = min(size, len(self._buffer) - self._at)
            self._at += step
            size -= step
        return not size

    def _filled(self) -> bool:
        if self._at == len(self._buffer):
            self._buffer, self._at = self._piece(), 0
        return bool(self._buffer)

    def drain(self) -> None:
        """Read the rest for the digests' sake."""
        while self._piece():
            pass

    def _piece(self) -> bytes:
        if self._gzip:
            data = self._inflated()
            self._sha256.update(data)
        else:
            data = self._blob.read()
        self.size_bytes += len(data)
        stored = self._blob.size_bytes
        if self.size_bytes > _HARMLESS_BYTES and self.size_bytes > _MAX_RATIO * stored:
            raise BombError(f"{stored:,} bytes unpack to more than {self.size_bytes:,}")
        if self.size_bytes > self._limit_bytes:
            raise BombError(f"the layers unpack to more than {self._limit_bytes:,} bytes")
        return data

    def _inflated(self) -> bytes:
        while True:
            if not self._input:
                self._input = self._blob.read()
            if self._inflate.eof:
                if not self._input.strip(b"\0"):  # padding after the last member
                    self._input = b""
                    if not self._blob.read():
                        return b""
                    raise BrokenLayerError("zeros follow its gzip data, and then more")
                self._inflate = zlib.decompressobj(31)
            ended = not self._input
            try:
                data = self._inflate.decompress(self._input, _PIECE)
            except zlib.error as error:
                raise BrokenLayerError(f"its gzip data is damaged ({error})") from error
            self._input = self._inflate.unconsumed_tail or self._inflate.unused_data
            if data:
                return data
            if ended and not self._inflate.eof:
                raise BrokenLayerError("its gzip data ends early")
