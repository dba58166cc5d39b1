"""Where a checkpoint is: its first GGUF in the file system, or an address on a network."""

import json
import re
from pathlib import Path

from coldpress.errors import InputError, IntegrityError, UsageError
from coldpress.serve.load.address import Address, is_address

Place = Path | Address
_MAGIC = b"GGUF"
INDEX_NAME = "model.index.json"
_SHARD = re.compile(r"(.+)-00001-of-(\d{5})\.gguf")
_MAX_SHARDS = 1000
_HINT = "give a checkpoint or a GGUF file"


def locate(checkpoint: str | Path) -> Place:
    """The GGUF itself, given it or the folder that holds it; the first of several shards.

    Raises:
        InputError: there is none here, or it is not a GGUF, or a shard is missing.
        IntegrityError: a size is not what ``model.index.json`` says.
        UsageError: it is an address that cannot be fetched from.
    """
    if is_address(str(checkpoint)):
        address = Address(str(checkpoint))
        address.check()
        return address
    if re.match(r"[a-z][a-z0-9+.-]*://", str(checkpoint)):
        raise UsageError(f"{str(checkpoint)!r} is no address of ours", "http(s)://, s3:// or gs://")
    path = _first(Path(checkpoint))
    for shard in shards(path):
        try:
            with shard.open("rb") as stream:
                magic = stream.read(len(_MAGIC))
        except OSError as error:
            raise InputError(f"{shard}: {error.strerror}", _HINT) from error
        if magic != _MAGIC:
            raise InputError(f"{shard} is not a GGUF file", _HINT)
    _check_sizes(path)
    return path


def shards(first: Path) -> tuple[Path, ...]:
    """The files of a model, by llama.cpp's naming of shards: the first alone if it is the whole.

    Raises:
        InputError: the name promises more shards than can be.
    """
    found = _SHARD.fullmatch(first.name)
    if found is None:
        return (first,)
    stem, count = found[1], int(found[2])
    if not 1 <= count <= _MAX_SHARDS:
        raise InputError(f"{first} is one of {count} shards", "give at most 1000")
    return tuple(
        first.with_name(f"{stem}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)
    )


def _first(path: Path) -> Path:
    if not path.is_dir():
        return path
    whole = path / "model.gguf"
    sharded = sorted(path.glob("model-00001-of-*.gguf"))
    return sharded[0] if sharded and not whole.exists() else whole


def _check_sizes(first: Path) -> None:
    """Hold the sizes against the index beside the files: the least that shows a broken copy."""
    index = first.with_name(INDEX_NAME)
    if not first.name.startswith("model") or not index.is_file():
        return
    try:
        sizes = {
            file["name"]: file["size_bytes"] for file in json.loads(index.read_bytes())["files"]
        }
    except (ValueError, LookupError, TypeError) as error:
        raise IntegrityError(f"{index} is not an index: {error}", "build it again") from error
    for path in shards(first):
        if path.name not in sizes:
            raise IntegrityError(
                f"{index} does not list {path.name}", "fetch the index of this one"
            )
        if path.stat().st_size != sizes[path.name]:
            raise IntegrityError(
                f"{path} has {path.stat().st_size} bytes, its index says {sizes[path.name]}",
                "fetch or build the checkpoint again",
            )
