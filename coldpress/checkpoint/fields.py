"""The ``coldpress.*`` metadata that makes a GGUF prove itself; see docs/checkpoint-format.md."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from coldpress.checkpoint import chunks, gguf_header
from coldpress.checkpoint.gguf_header import Field, Header, Tensor
from coldpress.errors import InputError, IntegrityError

FORMAT_VERSION = 1
PREFIX = "coldpress."
_VERSION = "coldpress.format_version"
_CHUNK_BYTES = "coldpress.chunk_bytes"
_DATA_BYTES = "coldpress.data_bytes"
_CHUNKS = "coldpress.chunk_sha256"
_ROOT = "coldpress.root_sha256"
_HEADER = "coldpress.header_sha256"
_BLANK = "0" * 64


@dataclass(frozen=True)
class Digests:
    """What a checkpoint's header says of its data section."""

    data_bytes: int
    chunk_bytes: int
    chunk_sha256: tuple[str, ...]
    root_sha256: str


def encode(
    fields: Iterable[Field],
    tensors: Sequence[Tensor],
    alignment: int,
    chunk_bytes: int,
    chunk_sha256: Sequence[str],
) -> bytes:
    """Encode a checkpoint's header. Its length does not depend on the digests' values."""
    last = tensors[-1]
    data_bytes = gguf_header.pad(last.offset + last.size_bytes, alignment)
    ours = (
        gguf_header.u32(gguf_header.ALIGNMENT_KEY, alignment),
        gguf_header.u32(_VERSION, FORMAT_VERSION),
        gguf_header.u64(_CHUNK_BYTES, chunk_bytes),
        gguf_header.u64(_DATA_BYTES, data_bytes),
        gguf_header.strings(_CHUNKS, chunk_sha256),
        gguf_header.string(_ROOT, chunks.root(chunk_sha256)),
    )
    kept = (field for field in fields if not _is_ours(field.key))
    complete = (*kept, *ours, gguf_header.string(_HEADER, _BLANK))
    blank = gguf_header.encode(complete, tensors, alignment)
    signed = (*complete[:-1], gguf_header.string(_HEADER, hashlib.sha256(blank).hexdigest()))
    return gguf_header.encode(signed, tensors, alignment)


def digests(header: Header, where: str) -> Digests:
    """Read a checkpoint's digests out of its header.

    Raises:
        InputError: a GGUF without them, or of a later format.
        IntegrityError: they contradict one another.
    """
    found = {field.key: field.value() for field in header.fields if field.key.startswith(PREFIX)}
    if not found:
        raise InputError(
            f"{where} carries no digests: it is a plain GGUF", "run `coldpress checkpoint` on it"
        )
    if found.get(_VERSION) != FORMAT_VERSION:
        raise InputError(
            f"{where} has checkpoint format {found.get(_VERSION)}, this reads {FORMAT_VERSION}",
            "use the coldpress that wrote it, or build it again",
        )
    read = _typed(found)
    if read is None or not _consistent(read, header):
        raise IntegrityError(f"{where}: the digests in the header are damaged", "fetch it again")
    return read


def header_is_intact(header: Header, raw: bytes) -> bool:
    """Whether ``raw``, the bytes before the data section, are those that were signed."""
    signed = header.field(_HEADER)
    if signed is None or gguf_header.encode(header.fields, header.tensors, header.alignment) != raw:
        return False
    blank = gguf_header.string(_HEADER, _BLANK)
    fields = (blank if field is signed else field for field in header.fields)
    unsigned = gguf_header.encode(fields, header.tensors, header.alignment)
    return hashlib.sha256(unsigned).hexdigest() == signed.value()


def _is_ours(key: str) -> bool:
    return key.startswith(PREFIX) or key == gguf_header.ALIGNMENT_KEY


def _typed(found: dict[str, object]) -> Digests | None:
    match found:
        case {
            "coldpress.data_bytes": int(data_bytes),
            "coldpress.chunk_bytes": int(chunk_bytes),
            "coldpress.chunk_sha256": list(hashes),
            "coldpress.root_sha256": str(root),
        } if all(_is_sha256(digest) for digest in hashes):
            return Digests(data_bytes, chunk_bytes, tuple(hashes), root)
    return None


def _is_sha256(text: object) -> bool:
    return isinstance(text, str) and len(text) == 64 and set(text) <= set("0123456789abcdef")


def _consistent(read: Digests, header: Header) -> bool:
    return (
        read.chunk_bytes > 0
        and read.data_bytes == header.data_bytes
        and len(read.chunk_sha256) == -(-read.data_bytes // read.chunk_bytes)
        and chunks.root(read.chunk_sha256) == read.root_sha256
    )
