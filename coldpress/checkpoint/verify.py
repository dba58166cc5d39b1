"""Check every byte of a checkpoint and say which ones differ."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from coldpress.checkpoint import chunks, fields, gguf_header, index
from coldpress.checkpoint.chunks import Chunk
from coldpress.checkpoint.gguf_header import Header
from coldpress.checkpoint.stage import locate
from coldpress.errors import InputError, IntegrityError

_AGAIN = "fetch it again, or build it again"


@dataclass(frozen=True)
class Verified:
    """A checkpoint whose every byte is what was written; ``indexed`` if it has its side file."""

    path: Path
    size_bytes: int
    n_tensors: int
    n_chunks: int
    root_sha256: str
    indexed: bool


def verify(path: Path) -> Verified:
    """Check a checkpoint's size, header, chunks and, if it is there, its index.

    Args:
        path: the artifact's folder, or its ``model.gguf`` alone: the file proves itself.

    Raises:
        IntegrityError: it is truncated, bytes differ, or the index belongs to another model.
        InputError: not a GGUF, or one that carries no digests.
    """
    gguf = locate(path)
    side = gguf.with_name(index.INDEX_NAME)
    listed = index.read(side) if side.is_file() else None
    if listed:
        _check_against_index(gguf, side, listed)
    header = gguf_header.peek(gguf)
    digests = fields.digests(header, str(gguf))
    size = gguf.stat().st_size
    _check_size(gguf, size, header.data_offset + digests.data_bytes)
    if not fields.header_is_intact(header, _head(gguf, header.data_offset)):
        raise IntegrityError(f"{gguf}: its header differs (bytes 0-{header.data_offset})", _AGAIN)
    if listed and (listed.tensors, listed.chunk_sha256) != (
        index.ranges(header),
        digests.chunk_sha256,
    ):
        raise IntegrityError(f"{side} does not agree with the header of {gguf}", _AGAIN)
    pieces = list(chunks.split(digests.data_bytes, digests.chunk_bytes))
    actual = chunks.sha256_chunks(gguf, header.data_offset, pieces, "verifying")
    bad = [
        c for c, was, now in zip(pieces, digests.chunk_sha256, actual, strict=True) if was != now
    ]
    if bad:
        raise IntegrityError(_name(gguf, header, bad, len(pieces)), _AGAIN)
    return Verified(gguf, size, len(header.tensors), len(pieces), digests.root_sha256, bool(listed))


def _check_against_index(gguf: Path, side: Path, listed: index.Index) -> None:
    """The index knows size and header without decoding them: it explains what a parser cannot."""
    _check_size(gguf, gguf.stat().st_size, listed.size_bytes)
    with gguf.open("rb") as stream:
        digest = chunks.sha256_range(stream.fileno(), 0, listed.data_offset)
    if digest == listed.header_sha256:
        return
    if _proves_itself(gguf):
        raise IntegrityError(f"{side} belongs to another model", "fetch the index of this one")
    raise IntegrityError(f"{gguf}: its header differs (bytes 0-{listed.data_offset})", _AGAIN)


def _proves_itself(gguf: Path) -> bool:
    try:
        header = gguf_header.peek(gguf)
    except InputError:
        return False
    return fields.header_is_intact(header, _head(gguf, header.data_offset))


def _check_size(gguf: Path, size: int, expected: int) -> None:
    if size != expected:
        what = "is truncated" if size < expected else "is too long"
        raise IntegrityError(f"{gguf} {what}: {size} of {expected} bytes", _AGAIN)


def _head(gguf: Path, count: int) -> bytes:
    with gguf.open("rb") as stream:
        return stream.read(count)


def _name(gguf: Path, header: Header, bad: list[Chunk], total: int) -> str:
    first = bad[0]
    start, end = header.data_offset + first.start, header.data_offset + first.end
    touched = _shorten(
        tensor.name
        for tensor in header.tensors
        if tensor.offset < first.end and tensor.offset + tensor.size_bytes > first.start
    )
    more = f"; {len(bad)} of {total} chunks differ" if len(bad) > 1 else f" of {total}"
    return f"{gguf}: chunk {first.number}{more}: bytes {start}-{end} differ ({touched})"


def _shorten(names: Iterable[str], most: int = 4) -> str:
    listed = list(names)
    rest = f" and {len(listed) - most} more" if len(listed) > most else ""
    return (", ".join(listed[:most]) or "padding") + rest
