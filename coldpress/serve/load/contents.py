"""Reads what a model consists of: from its index, or from the header of a lone GGUF.

Imported only where pieces are to be proven or fetched: a local file is mapped without it.
"""

from collections.abc import Sequence
from pathlib import Path

from coldpress.checkpoint import fields, gguf_header, index
from coldpress.checkpoint.source import PREFIX
from coldpress.errors import InputError, IntegrityError
from coldpress.serve.load.pieces import Contents, Piece, cut, unproven

MAX_INDEX_BYTES = 32 << 20


def of_index(raw: bytes, where: str) -> Contents:
    """What a ``model.index.json`` lists.

    Raises:
        IntegrityError: it is damaged.
        InputError: it lists something else than GGUF files.
    """
    listed = index.parse(raw, where)
    other = [file.name for file in listed.files if not file.name.endswith(".gguf")]
    if other:
        raise InputError(f"{where} lists {other[0]!r}: no GGUF", "give a checkpoint of GGUF files")
    files = (
        cut(
            file.name,
            Piece(0, file.data_offset, file.header_sha256),
            file.size_bytes,
            listed.chunk_bytes,
            file.chunk_sha256,
        )
        for file in listed.files
    )
    return Contents(tuple(files), listed.root_sha256)


def of_folder(path: Path) -> Contents:
    """What the index beside a local GGUF lists.

    Raises:
        InputError: there is none; IntegrityError: it is damaged.
    """
    side = path.with_name(index.INDEX_NAME)
    try:
        raw = side.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path} cannot be verified: {side.name}: {error.strerror}",
            "leave --verify out, or build a checkpoint",
        ) from error
    return of_index(raw, str(side))


def of_files(paths: Sequence[Path]) -> Contents:
    """Local files of which nothing but their sizes is known."""
    return Contents(tuple(unproven(path.name, path.stat().st_size) for path in paths), None)


def of_header(raw: bytes, size_bytes: int, where: str) -> Contents:
    """What the header of a GGUF without an index says; ``raw``: the file's first bytes.

    Raises:
        InputError: it ends inside its header, or is not a GGUF.
        IntegrityError: it is a checkpoint, and not intact.
    """
    header = gguf_header.parse(raw, where)
    head = Piece(0, header.data_offset, None)
    name = where.rpartition("/")[2]
    if not any(field.key.startswith(PREFIX) for field in header.fields):
        return Contents((cut(name, head, size_bytes),), None)
    digests = fields.digests(header, where)
    if not fields.header_is_intact(header, raw[: head.end]):
        raise IntegrityError(f"{where}: its header differs", "upload the checkpoint again")
    if size_bytes != head.end + digests.data_bytes:
        raise IntegrityError(
            f"{where} has {size_bytes} bytes, its header says {head.end + digests.data_bytes}",
            "upload the checkpoint again",
        )
    file = cut(name, head, size_bytes, digests.chunk_bytes, digests.chunk_sha256)
    return Contents((file,), digests.root_sha256)
