"""GGUF's value types, and a cursor that decodes them without ever reading or allocating too much."""

import mmap
import struct

from coldpress.errors import InputError

UINT16, UINT32, INT32, BOOL, STRING, ARRAY, UINT64 = 2, 4, 5, 7, 8, 9, 10
_SCALARS = {
    0: "<B",
    1: "<b",
    UINT16: "<H",
    3: "<h",
    UINT32: "<I",
    INT32: "<i",
    6: "<f",
    BOOL: "<?",
    UINT64: "<Q",
    11: "<q",
    12: "<d",
}
# Of the largest tokenizers ten times over; a longer header is a damaged count.
_MAX_HEADER_BYTES = 256 << 20
_HINT = "give a GGUF v3 file that llama.cpp loads, or fetch it again"


def encode_string(text: str) -> bytes:
    """A GGUF string: its length in bytes, then UTF-8."""
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def bad(where: object, what: str) -> InputError:
    """The error for bytes that are not a header that llama.cpp would load."""
    return InputError(f"{where} is not a readable GGUF: {what}", _HINT)


class Cursor:
    """Walks over bytes and refuses to walk past their end."""

    def __init__(self, data: bytes | mmap.mmap, where: str) -> None:
        self.data = data
        self.end = min(len(data), _MAX_HEADER_BYTES)
        self.where = where
        self.position = 0

    def need(self, count: int) -> None:
        """Raise an ``InputError`` unless so many bytes are left."""
        if count > self.end - self.position:
            raise bad(self.where, f"it ends inside its header, at byte {self.position}")

    def take(self, count: int) -> bytes:
        """The next bytes."""
        self.need(count)
        start, self.position = self.position, self.position + count
        return self.data[start : self.position]

    def scalar(self, form: str) -> int:
        """The next number, of a ``struct`` format."""
        number: int = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return number

    def text(self, limit: int, what: str) -> str:
        """The next string, of 1 to ``limit`` bytes."""
        length = self.scalar("<Q")
        if not 0 < length <= limit:
            raise bad(self.where, f"{what} of {length} bytes at byte {self.position}")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError as error:
            raise bad(self.where, f"{what} at byte {self.position} is not UTF-8") from error

    def skip(self, kind: int, key: str) -> None:
        """Step over a value of this GGUF type."""
        if form := _SCALARS.get(kind):
            self.take(struct.calcsize(form))
        elif kind == STRING:
            self.take(self.scalar("<Q"))
        elif kind == ARRAY:
            self._skip_array(key)
        else:
            raise bad(self.where, f"{key} has unknown type {kind}")

    def _skip_array(self, key: str) -> None:
        kind, count = self.scalar("<I"), self.scalar("<Q")
        if form := _SCALARS.get(kind):
            self.take(count * struct.calcsize(form))
        elif kind == STRING:
            self.need(count * 8)
            for _ in range(count):
                self.take(self.scalar("<Q"))
        else:  # llama.cpp refuses arrays of arrays as well
            raise bad(self.where, f"{key} is an array of unknown type {kind}")

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
