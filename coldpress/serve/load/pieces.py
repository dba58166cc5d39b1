"""The parts that a model arrives in: files, and pieces of them that can be proven one by one."""

from dataclasses import dataclass

_PLAIN_PIECE_BYTES = 8 << 20


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


def cut(
    name: str,
    head: Piece,
    size_bytes: int,
    chunk_bytes: int = _PLAIN_PIECE_BYTES,
    digests: tuple[str, ...] | None = None,
) -> File:
    """A file as its header and chunks of the rest; ``digests``: one for each chunk."""
    starts = range(head.end, size_bytes, chunk_bytes)
    proofs = digests or (None,) * len(starts)
    chunks = (
        Piece(start, min(start + chunk_bytes, size_bytes), proof)
        for start, proof in zip(starts, proofs, strict=True)
    )
    return File(name, size_bytes, (head, *chunks))


def unproven(name: str, size_bytes: int) -> File:
    """A file of which nothing but its size is known."""
    return cut(name, Piece(0, min(size_bytes, _PLAIN_PIECE_BYTES), None), size_bytes)
