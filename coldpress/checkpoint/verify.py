"""Check a checkpoint, every byte or some chunks, and say which ones differ."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from coldpress.checkpoint import chunks, fields, gguf_header, index, shards
from coldpress.checkpoint.chunked import ChunkedFile, check, choose
from coldpress.checkpoint.fields import Digests
from coldpress.checkpoint.gguf_header import Header
from coldpress.checkpoint.source import locate
from coldpress.errors import InputError, IntegrityError

_AGAIN = "fetch it again, or build it again"


@dataclass(frozen=True)
class Verified:
    """What was checked and is what was written; ``indexed`` if the side file is there and agrees.

    ``n_checked`` of ``n_chunks`` chunks were read; sizes and headers always are.
    """

    path: Path
    size_bytes: int
    n_files: int
    n_tensors: int
    n_chunks: int
    n_checked: int
    root_sha256: str
    indexed: bool


@dataclass(frozen=True)
class _File:
    """One file whose header is intact; its first chunk is number ``first`` of the model."""

    path: Path
    header: Header
    digests: Digests
    first: int

    def chunked(self, total: int) -> ChunkedFile:
        return ChunkedFile(
            path=self.path,
            first=self.first,
            total=total,
            data_offset=self.header.data_offset,
            data_bytes=self.digests.data_bytes,
            chunk_bytes=self.digests.chunk_bytes,
            chunk_sha256=self.digests.chunk_sha256,
            tensors={t.name: (t.offset, t.offset + t.size_bytes) for t in self.header.tensors},
        )


def verify(
    path: Path,
    *,
    numbers: Iterable[int] | None = None,
    tensors: Iterable[str] | None = None,
    threads: int | None = None,
) -> Verified:
    """Check a checkpoint's sizes, headers, chunks and, if they are there, its index and its prefix.

    Args:
        path: the artifact's folder, its ``model.gguf`` or first shard, or another shard alone.
        numbers: chunks to check, counted from 0 over all files; by default all.
        tensors: check the chunks that hold these tensors; together with ``numbers``.
        threads: that read and hash; by default one per CPU.

    Raises:
        IntegrityError: a file is missing or truncated, bytes differ, or the index or a shard belongs
            to another model.
        InputError: not a GGUF, or one that carries no digests.
        UsageError: there is no such chunk or tensor.
    """
    gguf = locate(path)
    side = gguf.with_name(index.INDEX_NAME)
    listed = index.read(side) if side.is_file() else None
    files = _open(_paths(gguf, side, listed), side, listed)
    total = sum(len(file.digests.chunk_sha256) for file in files)
    chunked = [file.chunked(total) for file in files]
    chosen = choose(chunked, numbers, tensors)
    check(chunked, chosen, threads)
    _check_prefix(files[0])
    return Verified(
        path=gguf,
        size_bytes=sum(file.path.stat().st_size for file in files),
        n_files=len(files),
        n_tensors=sum(len(file.header.tensors) for file in files),
        n_chunks=total,
        n_checked=len(chosen),
        root_sha256=chunks.root(d for file in files for d in file.digests.chunk_sha256),
        indexed=listed is not None,
    )


def _paths(gguf: Path, side: Path, listed: index.Index | None) -> list[Path]:
    """The files of the model: by its index, which explains more, else by the first file."""
    if listed:
        names = [file.name for file in listed.files]
        if gguf.name not in names:
            raise IntegrityError(f"{side} belongs to another model than {gguf}", _AGAIN)
        _check_against_index(gguf, side, listed.files[names.index(gguf.name)])
        alone = gguf.name != names[0]
        return [gguf] if alone else [gguf.with_name(name) for name in names]
    header = gguf_header.peek(gguf)
    alone = shards.place(header)[0] > 0
    return [gguf] if alone else list(shards.siblings(gguf, header))


def _open(paths: Sequence[Path], side: Path, listed: index.Index | None) -> list[_File]:
    files: list[_File] = []
    entries = {file.name: file for file in listed.files} if listed else {}
    for number, path in enumerate(paths):
        if not path.is_file():
            raise IntegrityError(
                f"{path} is missing: file {number + 1} of {len(paths)}", "fetch it, or build again"
            )
        entry = entries.get(path.name)
        if entry:
            _check_against_index(path, side, entry, later=number > 0)
        first = files[-1].first + len(files[-1].digests.chunk_sha256) if files else 0
        file = _proven(path, first)
        if files and files[0].digests.shard_header_sha256[number - 1 : number] != (
            file.digests.header_sha256,
        ):
            raise IntegrityError(f"{path} belongs to another model than {files[0].path}", _AGAIN)
        if listed and entry and not _agrees(listed, entry, file):
            raise IntegrityError(f"{side} does not agree with the header of {path}", _AGAIN)
        files.append(file)
    return files


def _check_prefix(first: _File) -> None:
    """The state of a system prompt, if one lies beside the model."""
    from coldpress.serve import prefix

    shipped = prefix.find(first.path)
    if shipped is None:
        return
    if problem := prefix.State(first.path, shipped, 1).wait():
        raise IntegrityError(problem, _AGAIN)
    if shipped.key.get("model_header_sha256") != first.digests.header_sha256:
        side = first.path.with_name(prefix.KEY_NAME)
        raise IntegrityError(f"{side} belongs to another model than {first.path}", _AGAIN)


def _proven(path: Path, first: int) -> _File:
    """Read a file's header and check it against its own digest, and the size against both."""
    header = gguf_header.peek(path)
    digests = fields.digests(header, str(path))
    _check_size(path, header.data_offset + digests.data_bytes)
    if not fields.header_is_intact(header, _head(path, header.data_offset)):
        raise _header_differs(path, header.data_offset)
    return _File(path, header, digests, first)


def _agrees(listed: index.Index, entry: index.IndexedFile, file: _File) -> bool:
    number = listed.files.index(entry)
    ours = {name: place for name, place in listed.tensors.items() if place.file == number}
    theirs = index.ranges(file.header, number)
    return (
        list(ours.items()) == list(theirs.items())
        and entry.chunk_sha256 == file.digests.chunk_sha256
        and listed.chunk_bytes == file.digests.chunk_bytes
    )


def _check_against_index(
    path: Path, side: Path, entry: index.IndexedFile, *, later: bool = False
) -> None:
    """The index knows size and header without decoding them: it explains what a parser cannot."""
    if not path.is_file():
        return
    with path.open("rb") as stream:
        digest = chunks.sha256_range(stream.fileno(), 0, entry.data_offset)
    if digest == entry.header_sha256:
        _check_size(path, entry.size_bytes)
        return
    if _proves_itself(path):
        # What the index knows of the first file is true, or we would not look at a later one.
        odd, other = (path, side) if later else (side, path)
        raise IntegrityError(f"{odd} belongs to another model than {other}", _AGAIN)
    _check_size(path, entry.size_bytes)
    raise _header_differs(path, entry.data_offset)


def _proves_itself(path: Path) -> bool:
    try:
        header = gguf_header.peek(path)
    except InputError:
        return False
    return fields.header_is_intact(header, _head(path, header.data_offset))


def _check_size(path: Path, expected: int) -> None:
    size = path.stat().st_size
    if size != expected:
        what = "is truncated" if size < expected else "is too long"
        raise IntegrityError(f"{path} {what}: {size} of {expected} bytes", _AGAIN)


def _header_differs(path: Path, end: int) -> IntegrityError:
    return IntegrityError(f"{path}: its header differs (bytes 0-{end})", _AGAIN)


def _head(path: Path, count: int) -> bytes:
    with path.open("rb") as stream:
        return stream.read(count)
