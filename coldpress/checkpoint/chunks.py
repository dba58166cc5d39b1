"""Chunks of a data section: the unit that is fetched, hashed and, when bad, named."""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from coldpress.errors import UsageError
from coldpress.progress import task

_MAX_THREADS = 8
_NUMBERS = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?", re.ASCII)


@dataclass(frozen=True)
class Chunk:
    """Bytes ``[start, end)`` of the data section."""

    number: int
    start: int
    end: int


def split(data_bytes: int, chunk_bytes: int) -> Iterator[Chunk]:
    """Cut a data section; the last chunk may be shorter."""
    for number, start in enumerate(range(0, data_bytes, chunk_bytes)):
        yield Chunk(number, start, min(start + chunk_bytes, data_bytes))


def parse(text: str) -> range:
    """Numbers of chunks from words: ``7``, or ``0-5``, both ends included.

    Raises:
        UsageError: neither.
    """
    match = _NUMBERS.fullmatch(text)
    numbers = range(int(match[1]), int(match[2] or match[1]) + 1) if match else range(0)
    if not numbers:
        raise UsageError(f"{text!r} is not a chunk", "a number or a range, such as 7 or 0-5")
    return numbers


def map_parallel(
    work: Callable[[Chunk], str],
    chunks: Iterable[Chunk],
    total_bytes: int,
    label: str,
    threads: int | None = None,
) -> list[str]:
    """Do ``work`` on every chunk, in threads: reading and hashing free the interpreter."""
    threads = threads or min(_MAX_THREADS, os.cpu_count() or 1)
    chunks = list(chunks)
    with task(label, total_bytes) as advance, ThreadPoolExecutor(threads) as pool:
        digests = []
        for chunk, digest in zip(chunks, pool.map(work, chunks), strict=True):
            digests.append(digest)
            advance(chunk.end - chunk.start)
        return digests


def sha256_range(descriptor: int, start: int, end: int) -> str:
    """Sha256 of bytes ``[start, end)`` of an open file; of fewer where the file is shorter."""
    digest = hashlib.sha256()
    while start < end and (piece := os.pread(descriptor, min(end - start, 1 << 20), start)):
        digest.update(piece)
        start += len(piece)
    return digest.hexdigest()


def sha256_chunks(
    path: Path,
    data_offset: int,
    chunks: Iterable[Chunk],
    label: str,
    threads: int | None = None,
) -> list[str]:
    """Sha256 of every chunk of a file's data section."""
    chunks = list(chunks)
    with path.open("rb") as stream:
        descriptor = stream.fileno()
        return map_parallel(
            lambda chunk: sha256_range(
                descriptor, data_offset + chunk.start, data_offset + chunk.end
            ),
            chunks,
            sum(chunk.end - chunk.start for chunk in chunks),
            label,
            threads,
        )


def root(digests: Iterable[str]) -> str:
    """Sha256 over the chunks' raw digests in order: one number that stands for all weights."""
    return hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in digests)).hexdigest()
