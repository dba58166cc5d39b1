"""Shards by llama.cpp's gguf-split convention: their names, their metadata and how tensors are divided.

The first shard holds the metadata and no tensor. llama-gguf-split pads merged tensors to 32 bytes
whatever ``general.alignment`` says, and takes the metadata from the first shard: only when that one
has no alignment to pass on is the merged file readable.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from coldpress.checkpoint.gguf_header import Field, Header, Tensor, i32, pad, u16
from coldpress.errors import InputError, UsageError

PREFIX = "split."
MAX_SHARDS = 1000
_NO, _COUNT, _TENSORS = "split.no", "split.count", "split.tensors.count"
_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


def name(stem: str, number: int, count: int) -> str:
    """The file name of shard ``number``, counted from 0, of ``count``."""
    return f"{stem}-{number + 1:05d}-of-{count:05d}.gguf"


def fields(number: int, count: int, n_tensors: int) -> tuple[Field, Field, Field]:
    """The entries that llama.cpp reads; ``n_tensors`` is of all shards together."""
    return u16(_NO, number), u16(_COUNT, count), i32(_TENSORS, n_tensors)


def place(header: Header) -> tuple[int, int]:
    """A file's number, from 0, among its shards and their count; (0, 1) where there is one file."""
    count, number = _integer(header, _COUNT), _integer(header, _NO)
    return (number, count) if count > 1 else (0, 1)


def siblings(path: Path, header: Header) -> tuple[Path, ...]:
    """Every shard of the model whose first shard is ``path``; they may be missing.

    Raises:
        InputError: it is another shard than the first, or is not named as llama.cpp names shards.
    """
    number, count = place(header)
    if count == 1:
        return (path,)
    match = _NAME.fullmatch(path.name)
    if number or count > MAX_SHARDS or not match or path.name != name(match[1], number, count):
        raise InputError(
            f"{path} is shard {number + 1} of {count}",
            "give the first one, named like model-00001-of-00003.gguf",
        )
    return tuple(path.with_name(name(match[1], each, count)) for each in range(count))


def first_in(folder: Path) -> Path | None:
    """The first shard that lies in a folder."""
    found = sorted(folder.glob("model-00001-of-*.gguf"))
    return found[0] if found else None


def by_size(
    tensors: Iterable[Tensor], alignment: int, shard_bytes: int
) -> list[tuple[Tensor, ...]]:
    """Cut tensors, in order, into groups of at most ``shard_bytes``; a larger tensor stands alone."""
    groups: list[list[Tensor]] = []
    room = -1
    for tensor in tensors:
        size = pad(tensor.size_bytes, alignment)
        if size > room:
            groups.append([])
            room = shard_bytes
        groups[-1].append(tensor)
        room -= size
    return [tuple(group) for group in groups]


def by_count(tensors: Sequence[Tensor], alignment: int, count: int) -> list[tuple[Tensor, ...]]:
    """Cut tensors, in order, into ``count`` groups, the largest of them as small as it can be.

    Raises:
        UsageError: there are fewer tensors.
    """
    if count > len(tensors):
        raise UsageError(
            f"{len(tensors)} tensors cannot be divided into {count}", "ask for fewer shards"
        )
    sizes = [pad(tensor.size_bytes, alignment) for tensor in tensors]
    low, high = max(sizes), sum(sizes)
    while low < high:
        middle = (low + high) // 2
        if len(by_size(tensors, alignment, middle)) > count:
            low = middle + 1
        else:
            high = middle
    groups = by_size(tensors, alignment, high)
    while len(groups) < count:
        at = max(
            (i for i, group in enumerate(groups) if len(group) > 1), key=lambda i: len(groups[i])
        )
        half = len(groups[at]) // 2
        groups[at : at + 1] = [groups[at][:half], groups[at][half:]]
    return groups


def _integer(header: Header, key: str) -> int:
    field = header.field(key)
    value = field.value() if field and field.is_scalar else 0
    return value if isinstance(value, int) else 0
