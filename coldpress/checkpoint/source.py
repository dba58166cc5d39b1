"""A GGUF to take weights from: one file, or the shards of one model."""

from dataclasses import dataclass
from pathlib import Path

from coldpress.checkpoint import gguf_header, index, shards
from coldpress.checkpoint.gguf_header import Field, Tensor
from coldpress.errors import InputError

PREFIX = "coldpress."
# What describes a file and not the model in it; a copy laid out otherwise has its own.
_OF_THE_FILE = (PREFIX, shards.PREFIX, gguf_header.ALIGNMENT_KEY)


@dataclass(frozen=True)
class Source:
    """A model's metadata and tensors; ``places``: tensor name → (file in ``paths``, byte there)."""

    paths: tuple[Path, ...]
    fields: tuple[Field, ...]
    tensors: tuple[Tensor, ...]
    places: dict[str, tuple[int, int]]


def locate(path: Path) -> Path:
    """The GGUF itself, or the first of its shards, given it or the folder that holds it.

    Raises:
        InputError: there is none.
    """
    gguf = path / index.GGUF_NAME if path.is_dir() else path
    if path.is_dir() and not gguf.is_file():
        gguf = shards.first_in(path) or gguf
    if not gguf.is_file():
        raise InputError(f"{gguf} does not exist", "give a GGUF or a folder with model.gguf")
    return gguf


def read(path: Path) -> Source:
    """Read the headers of a model.

    Raises:
        InputError: not a whole GGUF, a shard missing or of another model, or no tensors.
    """
    gguf = locate(path)
    first = gguf_header.read(gguf)
    paths = shards.siblings(gguf, first)
    tensors: list[Tensor] = []
    places: dict[str, tuple[int, int]] = {}
    for number, each in enumerate(paths):
        header = first if number == 0 else gguf_header.read(each)
        if shards.place(header) != (number, len(paths)):
            raise InputError(
                f"{each} is not shard {number + 1} of {len(paths)}", "fetch the shards again"
            )
        for tensor in header.tensors:
            if tensor.name in places:
                raise InputError(f"{each}: {tensor.name} is in another shard too", "fetch it again")
            places[tensor.name] = number, header.data_offset + tensor.offset
            tensors.append(tensor)
    if not tensors:
        raise InputError(f"{gguf} has no tensors", "give a model, not a vocabulary alone")
    kept = tuple(field for field in first.fields if not field.key.startswith(_OF_THE_FILE))
    return Source(paths, kept, tuple(tensors), places)
