"""Read and write a GGUF v3 header with the standard library alone, strictly.

Metadata values stay the bytes they are in the file, so that a header can be written again with
nothing changed; ``Field.value`` decodes one on demand. Every count and length is checked against
the bytes that are left before anything is allocated.

Source: llama.cpp, ggml/include/gguf.h (layout) and ggml/src/gguf.cpp (what its reader refuses).
"""

import math
import mmap
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from coldpress.checkpoint.ggml_types import GGML_TYPES
from coldpress.errors import InputError

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT_KEY = "general.alignment"
DEFAULT_ALIGNMENT = 32

UINT32, BOOL, STRING, ARRAY, UINT64 = 4, 7, 8, 9, 10
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    UINT32: "<I",
    5: "<i",
    6: "<f",
    BOOL: "<?",
    UINT64: "<Q",
    11: "<q",
    12: "<d",
}
_MAX_DIMS = 4
_MAX_TENSOR_NAME_BYTES = 63
_MAX_KEY_BYTES = 65535
# Of the largest tokenizers ten times over; a longer header is a damaged count.
_MAX_HEADER_BYTES = 256 << 20
_MAX_ALIGNMENT = 1 << 30
_MAX_BYTES = (1 << 63) - 1
_HINT = "give a GGUF v3 file that llama.cpp loads, or fetch it again"


@dataclass(frozen=True)
class Field:
    """One metadata entry: its key, its GGUF type and its value as in the file, little-endian."""

    key: str
    type: int
    payload: bytes

    def value(self) -> object:
        """The value as int, float, bool, str or a list of these; bytes where text is not UTF-8."""
        return _Cursor(self.payload, self.key).value(self.type)


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
        if not self.tensors:
            return 0
        last = self.tensors[-1]
        return pad(last.offset + last.size_bytes, self.alignment)

    def field(self, key: str) -> Field | None:
        """The metadata entry with this key."""
        return next((field for field in self.fields if field.key == key), None)


def pad(size: int, alignment: int) -> int:
    """The least multiple of ``alignment`` that is not below ``size``."""
    return -(-size // alignment) * alignment


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
            raise _bad(path, f"it is truncated: {size} of {end} bytes")
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
                raise _bad(path, "it is empty")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
                return parse(view, str(path))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", "check the path") from error


def parse(data: bytes | mmap.mmap, where: str = "header") -> Header:
    """Decode the header at the start of ``data``.

    Raises:
        InputError: see ``read``.
    """
    cursor = _Cursor(data, where)
    if cursor.take(4) != MAGIC:
        raise _bad(where, "it does not start with GGUF")
    version = cursor.scalar("<I")
    if version != VERSION:
        raise _bad(where, f"its version is {version}; this reads little-endian version {VERSION}")
    n_tensors, n_fields = cursor.scalar("<Q"), cursor.scalar("<Q")
    # An entry needs at least 13 bytes, a tensor 24: a damaged count stops here, not in memory.
    cursor.need(n_fields * 13 + n_tensors * 24)
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


def encode_string(text: str) -> bytes:
    """A GGUF string: its length in bytes, then UTF-8."""
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


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


class _Cursor:
    """Walks over bytes and refuses to walk past their end."""

    def __init__(self, data: bytes | mmap.mmap, where: str) -> None:
        self.data = data
        self.end = min(len(data), _MAX_HEADER_BYTES)
        self.where = where
        self.position = 0

    def need(self, count: int) -> None:
        if count > self.end - self.position:
            raise _bad(self.where, f"it ends inside its header, at byte {self.position}")

    def take(self, count: int) -> bytes:
        self.need(count)
        start, self.position = self.position, self.position + count
        return self.data[start : self.position]

    def scalar(self, form: str) -> int:
        number: int = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return number

    def text(self, limit: int, what: str) -> str:
        length = self.scalar("<Q")
        if not 0 < length <= limit:
            raise _bad(self.where, f"{what} of {length} bytes at byte {self.position}")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError as error:
            raise _bad(self.where, f"{what} at byte {self.position} is not UTF-8") from error

    def skip(self, kind: int, key: str) -> None:
        """Step over a value of this GGUF type."""
        if form := _SCALARS.get(kind):
            self.take(struct.calcsize(form))
        elif kind == STRING:
            self.take(self.scalar("<Q"))
        elif kind == ARRAY:
            self._skip_array(key)
        else:
            raise _bad(self.where, f"{key} has unknown type {kind}")

    def _skip_array(self, key: str) -> None:
        kind, count = self.scalar("<I"), self.scalar("<Q")
        if form := _SCALARS.get(kind):
            self.take(count * struct.calcsize(form))
        elif kind == STRING:
            self.need(count * 8)
            for _ in range(count):
                self.take(self.scalar("<Q"))
        else:  # llama.cpp refuses arrays of arrays as well
            raise _bad(self.where, f"{key} is an array of unknown type {kind}")

    def value(self, kind: int) -> object:
        """Decode a value that ``skip`` has accepted before."""
        if kind == ARRAY:
            item, count = self.scalar("<I"), self.scalar("<Q")
            return [self.value(item) for _ in range(count)]
        if kind == STRING:
            raw = self.take(self.scalar("<Q"))
            try:
                return raw.decode()
            except UnicodeDecodeError:
                return raw
        return self.scalar(_SCALARS[kind])


def _read_field(cursor: _Cursor) -> Field:
    key = cursor.text(_MAX_KEY_BYTES, "a key")
    kind = cursor.scalar("<I")
    start = cursor.position
    cursor.skip(kind, key)
    return Field(key, kind, cursor.data[start : cursor.position])


def _read_tensor(cursor: _Cursor) -> Tensor:
    name = cursor.text(_MAX_TENSOR_NAME_BYTES, "a tensor name")
    n_dims = cursor.scalar("<I")
    if n_dims > _MAX_DIMS:
        raise _bad(cursor.where, f"{name} has {n_dims} dimensions")
    shape = tuple(cursor.scalar("<Q") for _ in range(n_dims))
    type_id, offset = cursor.scalar("<I"), cursor.scalar("<Q")
    kind = GGML_TYPES.get(type_id)
    if kind is None:
        raise _bad(cursor.where, f"{name} has unknown ggml type {type_id}")
    if (shape[0] if shape else 1) % kind.block:
        raise _bad(cursor.where, f"{name} has rows of {shape[0]}, {kind.name} needs {kind.block}")
    # The factors are bounded one by one: a zero must not hide an absurd dimension.
    if math.prod(max(dim, 1) for dim in shape) * kind.block_bytes > _MAX_BYTES:
        raise _bad(cursor.where, f"{name} has the impossible shape {shape}")
    return Tensor(name, shape, type_id, offset)


def _alignment(fields: tuple[Field, ...], where: str) -> int:
    field = next((field for field in fields if field.key == ALIGNMENT_KEY), None)
    if field is None:
        return DEFAULT_ALIGNMENT
    if field.type != UINT32:
        raise _bad(where, f"{ALIGNMENT_KEY} is not a uint32")
    alignment = struct.unpack("<I", field.payload)[0]
    if not 0 < alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
        raise _bad(where, f"{ALIGNMENT_KEY} is {alignment}, not a power of two")
    return int(alignment)


def _check_offsets(tensors: tuple[Tensor, ...], alignment: int, where: str) -> None:
    """Tensors follow one another in the header's order with nothing but padding between."""
    expected = 0
    for tensor in tensors:
        if tensor.offset != expected:
            raise _bad(where, f"{tensor.name} is at offset {tensor.offset}, expected {expected}")
        expected = pad(expected + tensor.size_bytes, alignment)
        if expected > _MAX_BYTES:
            raise _bad(where, f"{tensor.name} ends past 2^63 bytes")


def _unique(names: Iterable[str], what: str, where: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise _bad(where, f"the {what} {name} occurs twice")
        seen.add(name)


def _bad(where: object, what: str) -> InputError:
    return InputError(f"{where} is not a readable GGUF: {what}", _HINT)
