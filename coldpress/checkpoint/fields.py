"""The ``coldpress.*`` metadata that makes a GGUF prove itself; see docs/checkpoint-format.md."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from coldpress.checkpoint import chunks, gguf_header, shards
from coldpress.checkpoint.gguf_header import Field, Header, Tensor
from coldpress.checkpoint.source import PREFIX
from coldpress.errors import InputError, IntegrityError

FORMAT_VERSION = 1
_VERSION = "coldpress.format_version"
_CHUNK_BYTES = "coldpress.chunk_bytes"
_DATA_BYTES = "coldpress.data_bytes"
_CHUNKS = "coldpress.chunk_sha256"
_ROOT = "coldpress.root_sha256"
_SHARDS = "coldpress.shard_header_sha256"
_HEADER = "coldpress.header_sha256"
_BLANK = "0" * 64
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Digests:
    """What a checkpoint's header says of its data section and, in a first shard, of the others."""

    data_bytes: int
    chunk_bytes: int
    chunk_sha256: tuple[str, ...]
    root_sha256: str
    shard_header_sha256: tuple[str, ...]
    header_sha256: str


@dataclass(frozen=True)
class Draft:
    """A header before its chunks are known; ``shard``: number, count, tensors of all shards."""

    fields: tuple[Field, ...]
    tensors: tuple[Tensor, ...]
    alignment: int
    chunk_bytes: int
    shard: tuple[int, int, int] | None = None
    shard_header_sha256: tuple[str, ...] = ()

    @property
    def data_bytes(self) -> int:
        """Bytes of the data section, padding included."""
        return gguf_header.data_bytes(self.tensors, self.alignment)

    def header_bytes(self) -> int:
        """Bytes before the data section: they do not depend on the digests' values."""
        count = -(-self.data_bytes // self.chunk_bytes)
        return len(self.encode([_BLANK] * count))

    def encode(self, chunk_sha256: Sequence[str]) -> bytes:
        """The header with these chunks' digests and its own."""
        complete = (*self.fields, *self._ours(chunk_sha256), gguf_header.string(_HEADER, _BLANK))
        blank = gguf_header.encode(complete, self.tensors, self.alignment)
        digest = hashlib.sha256(blank).hexdigest()
        signed = (*complete[:-1], gguf_header.string(_HEADER, digest))
        return gguf_header.encode(signed, self.tensors, self.alignment)

    def _ours(self, chunk_sha256: Sequence[str]) -> Iterable[Field]:
        if self.alignment != gguf_header.DEFAULT_ALIGNMENT:
            yield gguf_header.u32(gguf_header.ALIGNMENT_KEY, self.alignment)
        if self.shard:
            yield from shards.fields(*self.shard)
        yield gguf_header.u32(_VERSION, FORMAT_VERSION)
        yield gguf_header.u64(_CHUNK_BYTES, self.chunk_bytes)
        yield gguf_header.u64(_DATA_BYTES, self.data_bytes)
        yield gguf_header.strings(_CHUNKS, chunk_sha256)
        yield gguf_header.string(_ROOT, chunks.root(chunk_sha256))
        if self.shard_header_sha256:
            yield gguf_header.strings(_SHARDS, self.shard_header_sha256)


def digests(header: Header, where: str) -> Digests:
    """Read a checkpoint's digests out of its header.

    Raises:
        InputError: a GGUF without them, or of a later format.
        IntegrityError: they contradict one another.
    """
    found = {field.key: field for field in header.fields if field.key.startswith(PREFIX)}
    if not found:
        raise InputError(
            f"{where} carries no digests: it is a plain GGUF", "run `coldpress checkpoint` on it"
        )
    version = _scalar(found, _VERSION)
    if version != FORMAT_VERSION:
        raise InputError(
            f"{where} has checkpoint format {version}, this reads {FORMAT_VERSION}",
            "use the coldpress that wrote it, or build it again",
        )
    read = _typed(found)
    if read and len(read.shard_header_sha256) + 1 > shards.place(header)[1]:
        raise InputError(
            f"{where} was merged from shards: its digests are no longer true",
            "run `coldpress checkpoint` on it",
        )
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
    return signed == gguf_header.string(_HEADER, hashlib.sha256(unsigned).hexdigest())


def _typed(found: dict[str, Field]) -> Digests | None:
    match _scalar(found, _DATA_BYTES), _scalar(found, _CHUNK_BYTES):
        case int(data_bytes), int(chunk_bytes):
            pass
        case _:
            return None
    hashes, later = _sha256s(found, _CHUNKS), _sha256s(found, _SHARDS)
    root, header = _scalar(found, _ROOT), _scalar(found, _HEADER)
    if hashes is None or (later is None and _SHARDS in found):
        return None
    if not (isinstance(root, str) and isinstance(header, str)):
        return None
    return Digests(data_bytes, chunk_bytes, hashes, root, later or (), header)


def _scalar(found: dict[str, Field], key: str) -> object:
    field = found.get(key)
    return field.value() if field and field.is_scalar else None


def _sha256s(found: dict[str, Field], key: str) -> tuple[str, ...] | None:
    field = found.get(key)
    if field is None or not field.is_strings:
        return None
    texts = field.value()
    if not isinstance(texts, list):
        return None
    if not all(isinstance(text, str) and _SHA256.fullmatch(text) for text in texts):
        return None
    return tuple(texts)


def _consistent(read: Digests, header: Header) -> bool:
    return (
        read.chunk_bytes > 0
        and read.data_bytes == header.data_bytes
        and len(read.chunk_sha256) == -(-read.data_bytes // read.chunk_bytes)
        and chunks.root(read.chunk_sha256) == read.root_sha256
    )
