"""Read and write a GGUF v3 header with the standard library alone, strictly.

Metadata values stay the bytes they are in the file, so that a header can be written again with
nothing changed; ``Field.value`` decodes one on demand. Every count and length is checked against
the bytes that are left before anything is allocated.

Source: llama.cpp, ggml/include/gguf.h (layout) and ggml/src/gguf.cpp (what its reader refuses).
"""

import math
import mmap
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from coldpress.checkpoint.ggml_types import GGML_TYPES
from coldpress.checkpoint.gguf_values import (
    ARRAY,
    INT32,
    STRING,
    UINT16,
    UINT32,
    UINT64,
    Cursor,
    bad,
    encode_string,
)
from coldpress.errors import InputError

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT_KEY = "general.alignment"
DEFAULT_ALIGNMENT = 32

_MAX_DIMS = 4
_MAX_TENSOR_NAME_BYTES = 63
_MAX_KEY_BYTES = 65535
# Ten times over what models have: a header full of empty entries must not fill the memory.
_MAX_FIELDS = 1 << 16
_MAX_TENSORS = 1 << 18
_MAX_ALIGNMENT = 1 << 30
_MAX_BYTES = (1 << 63) - 1


@dataclass(frozen=True)
class Field:
    """One metadata entry: its key, its GGUF type and its value as in the file, little-endian."""

    key: str
    type: int
    payload: bytes

    def value(self) -> object:
        """The value as int, float, bool, str or a list of these; bytes where text is not UTF-8."""
        return Cursor(self.payload, self.key).value(self.type)

    @property
    def is_scalar(self) -> bool:
        """Whether the value is one number or text: an array's may be as large as the file."""
        return self.type != ARRAY

    @property
    def is_strings(self) -> bool:
        """Whether the value is an array of strings."""
        return self.type == ARRAY and self.payload[:4] == struct.pack("<I", STRING)


@dataclass(frozen=True)
class Tensor:
    """One tensor: ``shape`` has the row length first, ``offset`` counts from the data section."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int

    @property
    def type(self) -> str:
        """The ggml type's name."""
        return GGML_TYPES[self.type_id].name

    @property
    def size_bytes(self) -> int:
        """Bytes of its data, without padding."""
        kind = GGML_TYPES[self.type_id]
        return math.prod(self.shape) // kind.block * kind.block_bytes


@dataclass(frozen=True)
class Header:
    """Everything before the weights; the data section starts at byte ``data_offset``."""

    fields: tuple[Field, ...]
    tensors: tuple[Tensor, ...]
    alignment: int
    data_offset: int

    @property
    def data_bytes(self) -> int:
        """Bytes of the data section, the padding after the last tensor included."""
        return data_bytes(self.tensors, self.alignment)

    def field(self, key: str) -> Field | None:
        """The metadata entry with this key."""
        return next((field for field in self.fields if field.key == key), None)


def pad(size: int, alignment: int) -> int:
    """The least multiple of ``alignment`` that is not below ``size``."""
    return -(-size // alignment) * alignment


def data_bytes(tensors: Sequence[Tensor], alignment: int) -> int:
    """Bytes of the data section of these tensors, padding included."""
    return pad(tensors[-1].offset + tensors[-1].size_bytes, alignment) if tensors else 0


def read(path: Path) -> Header:
    """Read a file's header and check that every tensor lies inside the file.

    Raises:
        InputError: as ``peek``, or the file is truncated.
    """
    header = peek(path)
    size = path.stat().st_size
    if header.tensors:
        # The padding after the last tensor may be missing; llama.cpp does not read it.
        last = header.tensors[-1]
        end = header.data_offset + last.offset + last.size_bytes
        if end > size:
            raise bad(path, f"it is truncated: {size} of {end} bytes")
    return header


def peek(path: Path) -> Header:
    """Read a file's header, whatever is left of the weights behind it.

    Raises:
        InputError: not a GGUF v3 that llama.cpp would load; the message says what and where.
    """
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            if size == 0:
                raise bad(path, "it is empty")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
                return parse(view, str(path))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", "check the path") from error


def parse(data: bytes | mmap.mmap, where: str = "header") -> Header:
    """Decode the header at the start of ``data``.

    Raises:
        InputError: see ``read``.
    """
    cursor = Cursor(data, where)
    if cursor.take(4) != MAGIC:
        raise bad(where, "it does not start with GGUF")
    version = cursor.scalar("<I")
    if version != VERSION:
        raise bad(where, f"its version is {version}; this reads little-endian version {VERSION}")
    n_tensors, n_fields = cursor.scalar("<Q"), cursor.scalar("<Q")
    # An entry needs at least 13 bytes, a tensor 24: a damaged count stops here, not in memory.
    cursor.need(n_fields * 13 + n_tensors * 24)
    if n_fields > _MAX_FIELDS or n_tensors > _MAX_TENSORS:
        raise bad(where, f"it has {n_fields} metadata entries and {n_tensors} tensors")
    fields = tuple(_read_field(cursor) for _ in range(n_fields))
    _unique((field.key for field in fields), "key", where)
    alignment = _alignment(fields, where)
    tensors = tuple(_read_tensor(cursor) for _ in range(n_tensors))
    _unique((tensor.name for tensor in tensors), "tensor", where)
    _check_offsets(tensors, alignment, where)
    return Header(fields, tensors, alignment, pad(cursor.position, alignment))


def encode(fields: Iterable[Field], tensors: Iterable[Tensor], alignment: int) -> bytes:
    """Encode a header, zero-padded to where the data section starts."""
    fields, tensors = tuple(fields), tuple(tensors)
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(fields))]
    for field in fields:
        parts += [encode_string(field.key), struct.pack("<I", field.type), field.payload]
    for tensor in tensors:
        dims = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        place = struct.pack("<IQ", tensor.type_id, tensor.offset)
        parts += [encode_string(tensor.name), dims, place]
    data = b"".join(parts)
    return data.ljust(pad(len(data), alignment), b"\0")


def u16(key: str, number: int) -> Field:
    """A uint16 entry."""
    return Field(key, UINT16, struct.pack("<H", number))


def i32(key: str, number: int) -> Field:
    """An int32 entry."""
    return Field(key, INT32, struct.pack("<i", number))


def u32(key: str, number: int) -> Field:
    """A uint32 entry."""
    return Field(key, UINT32, struct.pack("<I", number))


def u64(key: str, number: int) -> Field:
    """A uint64 entry."""
    return Field(key, UINT64, struct.pack("<Q", number))


def string(key: str, text: str) -> Field:
    """A string entry."""
    return Field(key, STRING, encode_string(text))


def strings(key: str, texts: Iterable[str]) -> Field:
    """An entry that holds an array of strings."""
    items = [encode_string(text) for text in texts]
    return Field(key, ARRAY, struct.pack("<IQ", STRING, len(items)) + b"".join(items))


def _read_field(cursor: Cursor) -> Field:
    key = cursor.text(_MAX_KEY_BYTES, "a key")
    kind = cursor.scalar("<I")
    start = cursor.position
    cursor.skip(kind, key)
    return Field(key, kind, cursor.data[start : cursor.position])


def _read_tensor(cursor: Cursor) -> Tensor:
    name = cursor.text(_MAX_TENSOR_NAME_BYTES, "a tensor name")
    n_dims = cursor.scalar("<I")
    if n_dims > _MAX_DIMS:
        raise bad(cursor.where, f"{name} has {n_dims} dimensions")
    shape = tuple(cursor.scalar("<Q") for _ in range(n_dims))
    type_id, offset = cursor.scalar("<I"), cursor.scalar("<Q")
    kind = GGML_TYPES.get(type_id)
    if kind is None:
        raise bad(cursor.where, f"{name} has unknown ggml type {type_id}")
    row = shape[0] if shape else 1
    if row % kind.block:
        raise bad(cursor.where, f"{name} has rows of {row}, {kind.name} needs {kind.block}")
    # The factors are bounded one by one: a zero must not hide an absurd dimension.
    if math.prod(max(dim, 1) for dim in shape) * kind.block_bytes > _MAX_BYTES:
        raise bad(cursor.where, f"{name} has the impossible shape {shape}")
    return Tensor(name, shape, type_id, offset)


def _alignment(fields: tuple[Field, ...], where: str) -> int:
    field = next((field for field in fields if field.key == ALIGNMENT_KEY), None)
    if field is None:
        return DEFAULT_ALIGNMENT
    if field.type != UINT32:
        raise bad(where, f"{ALIGNMENT_KEY} is not a uint32")
    alignment = struct.unpack("<I", field.payload)[0]
    if not 0 < alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
        raise bad(where, f"{ALIGNMENT_KEY} is {alignment}, not a power of two")
    return int(alignment)


def _check_offsets(tensors: tuple[Tensor, ...], alignment: int, where: str) -> None:
    """Tensors follow one another in the header's order with nothing but padding between."""
    expected = 0
    for tensor in tensors:
        if tensor.offset != expected:
            raise bad(where, f"{tensor.name} is at offset {tensor.offset}, expected {expected}")
        expected = pad(expected + tensor.size_bytes, alignment)
        if expected > _MAX_BYTES:
            raise bad(where, f"{tensor.name} ends past 2^63 bytes")


def _unique(names: Iterable[str], what: str, where: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise bad(where, f"the {what} {name} occurs twice")
        seen.add(name)
