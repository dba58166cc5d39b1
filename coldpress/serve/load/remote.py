"""A remote checkpoint: what it consists of, and a source for each of its files."""

from dataclasses import dataclass

from coldpress.errors import InputError, RemoteError
from coldpress.serve.load import contents
from coldpress.serve.load.address import Address
from coldpress.serve.load.http_ranges import HttpObject, MissingError
from coldpress.serve.load.patience import Patience, Stop
from coldpress.serve.load.pieces import Contents
from coldpress.serve.load.place import INDEX_NAME

_FIRST_HEADER_BYTES = 8 << 20
_MAX_HEADER_BYTES = 256 << 20


@dataclass(frozen=True)
class Remote:
    """Files, and where each comes from, in the same order."""

    contents: Contents
    sources: tuple[HttpObject, ...]


def describe(address: Address, patience: Patience, stop: Stop) -> Remote:
    """Fetch the index; of a lone GGUF without one, the header.

    Raises:
        RemoteError: there is neither, or the server fails.
        IntegrityError: what it serves contradicts itself.
        InputError: it serves something else than a checkpoint or a GGUF.
    """
    side = HttpObject(address.target(INDEX_NAME), patience)
    stop.on(side.interrupt)
    try:
        raw = side.whole(contents.MAX_INDEX_BYTES)
    except RemoteError as error:
        # A presigned address opens one object only: what is beside it may be forbidden.
        if not address.is_file:
            if isinstance(error, MissingError):
                raise MissingError(
                    f"{side} does not exist", "give a checkpoint's folder, or a .gguf in it"
                ) from error
            raise
        return _lone(address, patience, stop)
    finally:
        side.close()
    made = contents.of_index(raw, str(side))
    if address.is_file:
        only = address.target().path.rpartition("/")[2]
        if only != made.files[0].name:
            return _lone(address, patience, stop)
    sources = tuple(
        HttpObject(address.target(file.name), patience, file.size_bytes) for file in made.files
    )
    for source in sources:
        stop.on(source.interrupt)
    return Remote(made, sources)


def _lone(address: Address, patience: Patience, stop: Stop) -> Remote:
    source = HttpObject(address.target(), patience)
    stop.on(source.interrupt)
    try:
        return Remote(_by_header(source), (source,))
    except BaseException:
        source.close()
        raise


def _by_header(source: HttpObject) -> Contents:
    size = source.probe()
    raw = bytearray()
    wanted = _FIRST_HEADER_BYTES
    while True:
        for data in source.stream(len(raw), min(wanted, size)):
            raw += data
        try:
            return contents.of_header(bytes(raw), size, str(source))
        except InputError:
            # It may just end inside the header: a tokenizer has no upper bound.
            if len(raw) >= min(size, _MAX_HEADER_BYTES):
                raise
            wanted *= 2
