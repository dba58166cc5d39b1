"""Lay a GGUF out for a cold start."""

from dataclasses import asdict, dataclass
from pathlib import Path

from coldpress import artifact
from coldpress.checkpoint import chunks, fields, gguf_header, index, write
from coldpress.checkpoint.gguf_header import Header
from coldpress.errors import InputError, UsageError


def _power_of_two(name: str, number: int, least: int, most: int) -> None:
    if not least <= number <= most or number & (number - 1):
        raise UsageError(f"{name} is {number}", f"a power of two from {least} to {most}")


@dataclass(frozen=True)
class CheckpointOptions:
    """``alignment`` of every tensor and ``chunk_bytes`` per digest; both powers of two."""

    chunk_bytes: int = 8 << 20
    alignment: int = 4096

    def __post_init__(self) -> None:
        _power_of_two("alignment", self.alignment, 32, 1 << 21)
        _power_of_two("chunk_bytes", self.chunk_bytes, 4096, 1 << 30)


@dataclass(frozen=True)
class Checkpointed:
    """The artifact's folder and what its GGUF consists of."""

    path: Path
    size_bytes: int
    header_bytes: int
    n_tensors: int
    n_chunks: int
    root_sha256: str
    sha256: str


def plan(
    gguf: Path, out: Path, options: CheckpointOptions
) -> tuple[dict[str, Path], dict[str, object]]:
    """What the result depends on: the inputs' paths and the resolved options."""
    return {"gguf": gguf}, asdict(options)


def checkpoint(
    gguf: Path, out: Path, options: CheckpointOptions = CheckpointOptions()
) -> Checkpointed:
    """Write ``model.gguf`` in execution order, aligned, with a digest per chunk, and its index.

    Args:
        gguf: a GGUF v3, or an artifact folder that holds ``model.gguf``.
        out: the artifact's folder.

    Raises:
        InputError: not a whole GGUF, one of several shards, or one without weights.
    """
    source = locate(gguf)
    header = gguf_header.read(source)
    _check_complete(source, header)
    inputs, plain = plan(gguf, out, options)
    with artifact.create(out, "checkpoint", inputs=inputs, options=plain) as draft:
        written = draft.folder / index.GGUF_NAME
        write.write(source, header, written, options.alignment, options.chunk_bytes)
        made = _index(written)
        index.write(draft.folder / index.INDEX_NAME, made)
    return Checkpointed(
        path=out,
        size_bytes=made.size_bytes,
        header_bytes=made.data_offset,
        n_tensors=len(made.tensors),
        n_chunks=len(made.chunk_sha256),
        root_sha256=made.root_sha256,
        sha256=made.sha256,
    )


def locate(path: Path) -> Path:
    """The GGUF itself, given it or the folder that holds it.

    Raises:
        InputError: there is none.
    """
    gguf = path / index.GGUF_NAME if path.is_dir() else path
    if not gguf.is_file():
        raise InputError(f"{gguf} does not exist", "give a GGUF or a folder with model.gguf")
    return gguf


def _index(written: Path) -> index.Index:
    """Describe a finished file from its own bytes."""
    header = gguf_header.read(written)
    digests = fields.digests(header, str(written))
    with written.open("rb") as stream:
        header_sha256 = chunks.sha256_range(stream.fileno(), 0, header.data_offset)
    return index.Index(
        size_bytes=written.stat().st_size,
        sha256=artifact.sha256_file(written),
        header_sha256=header_sha256,
        data_offset=header.data_offset,
        tensors=index.ranges(header),
        **vars(digests),
    )


def _check_complete(source: Path, header: Header) -> None:
    if not header.tensors:
        raise InputError(f"{source} has no tensors", "give a model, not a vocabulary alone")
    count = header.field("split.count")
    if count is not None and count.value() not in (0, 1):
        raise InputError(
            f"{source} is one of {count.value()} shards", "merge them: llama-gguf-split --merge"
        )
