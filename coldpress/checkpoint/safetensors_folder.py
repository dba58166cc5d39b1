"""A chunk index over a folder of safetensors files, and the check against it; no file is changed."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from coldpress import artifact
from coldpress.checkpoint import chunks, index, safetensors_header
from coldpress.checkpoint.chunked import ChunkedFile, check, choose
from coldpress.checkpoint.verify import Verified
from coldpress.errors import InputError, IntegrityError

CHUNK_BYTES = 8 << 20
_AGAIN = "fetch it again, or index it again if it was changed on purpose"


@dataclass(frozen=True)
class Indexed:
    """A folder's index and what it covers."""

    path: Path
    size_bytes: int
    n_files: int
    n_tensors: int
    n_chunks: int
    root_sha256: str


def is_safetensors(folder: Path) -> bool:
    """Whether a folder holds safetensors files and no GGUF."""
    return folder.is_dir() and any(folder.glob("*.safetensors")) and not any(folder.glob("*.gguf"))


def files(folder: Path) -> list[Path]:
    """The folder's safetensors files by name.

    Raises:
        InputError: there is none.
    """
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        raise InputError(f"{folder} has no safetensors files", "give a Hugging Face model folder")
    return found


def index_folder(folder: Path) -> Indexed:
    """Write ``model.index.json`` beside the safetensors files: a sha256 per 8 MiB and per file.

    Raises:
        InputError: there are none, one is damaged, or two have a tensor of the same name.
    """
    made = _index(files(folder))
    out = folder / index.INDEX_NAME
    partial = out.with_name(out.name + ".partial")
    index.write(partial, made)
    partial.rename(out)
    return Indexed(
        path=out,
        size_bytes=sum(file.size_bytes for file in made.files),
        n_files=len(made.files),
        n_tensors=len(made.tensors),
        n_chunks=sum(len(file.chunk_sha256) for file in made.files),
        root_sha256=made.root_sha256,
    )


def verify_folder(
    folder: Path,
    *,
    numbers: Iterable[int] | None = None,
    tensors: Iterable[str] | None = None,
    threads: int | None = None,
) -> Verified:
    """Check safetensors files against their index; arguments and errors as of ``verify``."""
    listed = index.read(folder / index.INDEX_NAME)
    chunked = opened(folder, listed)
    chosen = choose(chunked, numbers, tensors)
    check(chunked, chosen, threads)
    return Verified(
        path=folder,
        size_bytes=sum(file.size_bytes for file in listed.files),
        n_files=len(listed.files),
        n_tensors=len(listed.tensors),
        n_chunks=sum(len(file.chunk_sha256) for file in listed.files),
        n_checked=len(chosen),
        root_sha256=listed.root_sha256,
        indexed=True,
    )


def opened(folder: Path, listed: index.Index) -> list[ChunkedFile]:
    """The files of an index, their sizes and headers checked against it.

    Raises:
        IntegrityError: one is missing or differs.
    """
    found: list[ChunkedFile] = []
    first = 0
    for number, file in enumerate(listed.files):
        found.append(_opened(folder, listed, number, first))
        first += len(file.chunk_sha256)
    return found


def _opened(folder: Path, listed: index.Index, number: int, first: int) -> ChunkedFile:
    file = listed.files[number]
    path = folder / file.name
    if not path.is_file():
        raise IntegrityError(
            f"{path} is missing: file {number + 1} of {len(listed.files)}", "fetch it"
        )
    size = path.stat().st_size
    if size != file.size_bytes:
        what = "is truncated" if size < file.size_bytes else "is too long"
        raise IntegrityError(f"{path} {what}: {size} of {file.size_bytes} bytes", _AGAIN)
    with path.open("rb") as stream:
        digest = chunks.sha256_range(stream.fileno(), 0, file.data_offset)
    if digest != file.header_sha256:
        raise IntegrityError(f"{path}: its header differs (bytes 0-{file.data_offset})", _AGAIN)
    header = safetensors_header.read(path)
    ours = {name: place for name, place in listed.tensors.items() if place.file == number}
    if ours != _ranges(header, number):
        raise IntegrityError(
            f"{folder / index.INDEX_NAME} does not agree with the header of {path}", _AGAIN
        )
    return ChunkedFile(
        path=path,
        first=first,
        total=sum(len(each.chunk_sha256) for each in listed.files),
        data_offset=file.data_offset,
        data_bytes=file.data_bytes,
        chunk_bytes=listed.chunk_bytes,
        chunk_sha256=file.chunk_sha256,
        tensors={tensor.name: (tensor.start, tensor.end) for tensor in header.tensors},
    )


def _index(paths: Iterable[Path]) -> index.Index:
    made: list[index.IndexedFile] = []
    tensors: dict[str, index.Range] = {}
    for number, path in enumerate(paths):
        header = safetensors_header.read(path)
        ranges = _ranges(header, number)
        if twice := tensors.keys() & ranges.keys():
            raise InputError(f"{path}: {min(twice)} is in another file too", "give one model")
        tensors |= ranges
        pieces = chunks.split(header.data_bytes, CHUNK_BYTES)
        digests = chunks.sha256_chunks(path, header.data_offset, pieces, f"hashing {path.name}")
        with path.open("rb") as stream:
            head = chunks.sha256_range(stream.fileno(), 0, header.data_offset)
        made.append(
            index.IndexedFile(
                name=path.name,
                size_bytes=header.data_offset + header.data_bytes,
                sha256=artifact.sha256_file(path),
                header_sha256=head,
                data_offset=header.data_offset,
                data_bytes=header.data_bytes,
                chunk_sha256=tuple(digests),
                root_sha256=chunks.root(digests),
            )
        )
    return index.make(CHUNK_BYTES, made, tensors)


def _ranges(header: safetensors_header.Header, number: int) -> dict[str, index.Range]:
    return {
        tensor.name: index.Range(
            number,
            tensor.dtype,
            tensor.shape,
            header.data_offset + tensor.start,
            tensor.end - tensor.start,
        )
        for tensor in header.tensors
    }
