"""Lay a GGUF out for a cold start."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from coldpress import artifact
from coldpress.checkpoint import chunks, fields, gguf_header, index, layout, shards, source, write
from coldpress.checkpoint.fields import Draft
from coldpress.checkpoint.gguf_header import Tensor
from coldpress.checkpoint.source import Source
from coldpress.errors import UsageError

_STEM = "model"


def _power_of_two(name: str, number: int, least: int, most: int) -> None:
    if not least <= number <= most or number & (number - 1):
        raise UsageError(f"{name} is {number}", f"a power of two from {least} to {most}")


@dataclass(frozen=True)
class CheckpointOptions:
    """``alignment`` of every tensor and ``chunk_bytes`` per digest; both powers of two.

    ``shards`` is the number of files, the first of which holds the metadata alone; ``shard_bytes``
    the most data that a shard may have, unless one tensor is larger. Without either: one file.
    """

    chunk_bytes: int = 8 << 20
    alignment: int = 4096
    shards: int | None = None
    shard_bytes: int | None = None

    def __post_init__(self) -> None:
        _power_of_two("alignment", self.alignment, 32, 1 << 21)
        _power_of_two("chunk_bytes", self.chunk_bytes, 4096, 1 << 30)
        if self.shards is not None and self.shard_bytes is not None:
            raise UsageError("shards are given by number and by size", "give one of them")
        if self.shards is not None and not 2 <= self.shards <= shards.MAX_SHARDS:
            raise UsageError(
                f"shards is {self.shards}", f"a number from 2 to {shards.MAX_SHARDS}, or none"
            )
        if self.shard_bytes is not None and self.shard_bytes < self.alignment:
            raise UsageError(f"shard_bytes is {self.shard_bytes}", f"at least {self.alignment}")


@dataclass(frozen=True)
class Checkpointed:
    """The artifact's folder and what its files consist of; a plain GGUF has no digests."""

    path: Path
    size_bytes: int
    header_bytes: int
    n_files: int
    n_tensors: int
    n_chunks: int
    root_sha256: str | None


def plan(
    gguf: Path, out: Path, options: CheckpointOptions
) -> tuple[dict[str, Path], dict[str, object]]:
    """What the result depends on: the inputs' paths and the resolved options."""
    return {"gguf": gguf}, asdict(options)


def checkpoint(
    gguf: Path, out: Path, options: CheckpointOptions = CheckpointOptions()
) -> Checkpointed:
    """Write a GGUF, or its shards, in execution order, aligned, with a digest per chunk, and an index.

    Args:
        gguf: a GGUF v3, the first of its shards, or an artifact folder that holds either.
        out: the artifact's folder.

    Raises:
        InputError: not a whole GGUF, or one without weights.
        UsageError: it cannot be divided into so many shards.
    """
    model = source.read(gguf)
    tensors = layout.execution_order(model.tensors)
    groups = _divide(tensors, options)
    inputs, plain = plan(gguf, out, options)
    with artifact.create(out, "checkpoint", inputs=inputs, options=plain) as draft:
        written = _write(model, groups, draft.folder, options)
        made = _index(written)
        index.write(draft.folder / index.INDEX_NAME, made)
    return Checkpointed(
        path=out,
        size_bytes=sum(file.size_bytes for file in made.files),
        header_bytes=sum(file.data_offset for file in made.files),
        n_files=len(made.files),
        n_tensors=len(made.tensors),
        n_chunks=sum(len(file.chunk_sha256) for file in made.files),
        root_sha256=made.root_sha256,
    )


def _divide(
    tensors: Sequence[Tensor], options: CheckpointOptions
) -> list[tuple[Tensor, ...]] | None:
    """The tensors of every shard but the first; None for one file."""
    if options.shards is not None:
        return shards.by_count(tensors, options.alignment, options.shards - 1)
    if options.shard_bytes is None:
        return None
    groups = shards.by_size(tensors, options.alignment, options.shard_bytes)
    if len(groups) >= shards.MAX_SHARDS:
        raise UsageError(f"{options.shard_bytes} bytes make {len(groups)} shards", "ask for larger")
    return groups


def _write(
    model: Source,
    groups: Sequence[tuple[Tensor, ...]] | None,
    folder: Path,
    options: CheckpointOptions,
) -> list[Path]:
    """Write the file, or the shards; the first comes last, as it holds the others' digests."""
    if groups is None:
        tensors = layout.place(layout.execution_order(model.tensors), options.alignment)
        draft = Draft(model.fields, tensors, options.alignment, options.chunk_bytes)
        write.write(model, draft, folder / index.GGUF_NAME)
        return [folder / index.GGUF_NAME]
    count = len(groups) + 1
    paths = [folder / shards.name(_STEM, number, count) for number in range(count)]
    headers = []
    for number, group in enumerate(groups, start=1):
        tensors = layout.place(group, options.alignment)
        shard = number, count, len(model.tensors)
        draft = Draft((), tensors, options.alignment, options.chunk_bytes, shard)
        write.write(model, draft, paths[number])
        written = gguf_header.peek(paths[number])
        headers.append(fields.digests(written, str(paths[number])).header_sha256)
    first = Draft(
        model.fields,
        (),
        gguf_header.DEFAULT_ALIGNMENT,
        options.chunk_bytes,
        (0, count, len(model.tensors)),
        tuple(headers),
    )
    write.write(model, first, paths[0])
    return paths


def _index(paths: Iterable[Path]) -> index.Index:
    """Describe finished files from their own bytes."""
    files: list[index.IndexedFile] = []
    tensors: dict[str, index.Range] = {}
    chunk_bytes = 0
    for number, path in enumerate(paths):
        header = gguf_header.read(path)
        digests = fields.digests(header, str(path))
        chunk_bytes = digests.chunk_bytes
        tensors |= index.ranges(header, number)
        with path.open("rb") as stream:
            header_sha256 = chunks.sha256_range(stream.fileno(), 0, header.data_offset)
        files.append(
            index.IndexedFile(
                name=path.name,
                size_bytes=path.stat().st_size,
                sha256=artifact.sha256_file(path),
                header_sha256=header_sha256,
                data_offset=header.data_offset,
                data_bytes=digests.data_bytes,
                chunk_sha256=digests.chunk_sha256,
                root_sha256=digests.root_sha256,
            )
        )
    return index.make(chunk_bytes, files, tensors)
