"""Check chosen chunks of files whose digests are known, and say which ones differ."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from coldpress.checkpoint import chunks
from coldpress.checkpoint.chunks import Chunk
from coldpress.errors import IntegrityError, UsageError


@dataclass(frozen=True)
class ChunkedFile:
    """A file and its chunks; the first of them is number ``first`` of the model's ``total``.

    ``tensors``: name → its first byte in the data section and the first one after it.
    """

    path: Path
    first: int
    total: int
    data_offset: int
    data_bytes: int
    chunk_bytes: int
    chunk_sha256: tuple[str, ...]
    tensors: dict[str, tuple[int, int]]

    @property
    def pieces(self) -> list[Chunk]:
        """Its chunks, numbered from 0."""
        return list(chunks.split(self.data_bytes, self.chunk_bytes))


def choose(
    files: Sequence[ChunkedFile], numbers: Iterable[int] | None, tensors: Iterable[str] | None
) -> set[int]:
    """The numbers of the chunks to read, counted over all files; by default all.

    Raises:
        UsageError: there is no such chunk or tensor.
    """
    total = files[0].total
    if numbers is None and tensors is None:
        return {file.first + number for file in files for number in range(len(file.chunk_sha256))}
    chosen = set(numbers or ())
    if beyond := sorted(number for number in chosen if not 0 <= number < total):
        raise UsageError(f"there is no chunk {beyond[0]}", f"chunks are 0 to {total - 1}")
    for name in tensors or ():
        chosen |= _holding(files, name)
    return chosen


def check(files: Sequence[ChunkedFile], chosen: set[int], threads: int | None) -> None:
    """Read the chosen chunks.

    Raises:
        IntegrityError: some differ; it names the first of them and the tensors in it.
    """
    bad: list[tuple[ChunkedFile, Chunk]] = []
    for file in files:
        pieces = [chunk for chunk in file.pieces if file.first + chunk.number in chosen]
        actual = chunks.sha256_chunks(
            file.path, file.data_offset, pieces, f"verifying {file.path.name}", threads
        )
        was = file.chunk_sha256
        bad += [(file, c) for c, now in zip(pieces, actual, strict=True) if was[c.number] != now]
    if bad:
        raise differs(bad)


def differs(bad: Sequence[tuple[ChunkedFile, Chunk]]) -> IntegrityError:
    """The error for chunks that differ: the first of them, and the tensors in it."""
    return IntegrityError(_name(bad), "fetch it again, or build it again")


def _holding(files: Sequence[ChunkedFile], name: str) -> set[int]:
    for file in files:
        if name in file.tensors:
            start, end = file.tensors[name]
            first = file.first + start // file.chunk_bytes
            return set(range(first, file.first + -(-end // file.chunk_bytes)))
    raise UsageError(f"there is no tensor {name!r}", "`coldpress inspect` lists them")


def _name(bad: Sequence[tuple[ChunkedFile, Chunk]]) -> str:
    file, first = bad[0]
    start, end = file.data_offset + first.start, file.data_offset + first.end
    touched = _shorten(
        name for name, (a, b) in file.tensors.items() if a < first.end and b > first.start
    )
    total = file.total
    more = f"; {len(bad)} of {total} chunks differ" if len(bad) > 1 else f" of {total}"
    number = file.first + first.number
    return f"{file.path}: chunk {number}{more}: bytes {start}-{end} differ ({touched})"


def _shorten(names: Iterable[str], most: int = 4) -> str:
    listed = list(names)
    rest = f" and {len(listed) - most} more" if len(listed) > most else ""
    return (", ".join(listed[:most]) or "padding") + rest
