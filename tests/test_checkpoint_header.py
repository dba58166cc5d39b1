"""The GGUF header reader and writer: golden bytes, round trips, and damage of every kind."""

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coldpress.checkpoint import gguf_header, gguf_values
from coldpress.checkpoint.ggml_types import GGML_TYPES
from coldpress.checkpoint.gguf_header import Field, Header, Tensor
from coldpress.errors import InputError

GOLDEN = (
    b"GGUF" b"\3\0\0\0"
    b"\1\0\0\0\0\0\0\0" b"\2\0\0\0\0\0\0\0"  # tensors, fields
    b"\1\0\0\0\0\0\0\0" b"a" b"\4\0\0\0" b"\7\0\0\0"  # a = uint32 7
    b"\1\0\0\0\0\0\0\0" b"b" b"\x09\0\0\0" b"\x08\0\0\0" b"\1\0\0\0\0\0\0\0"  # b = strings
    b"\2\0\0\0\0\0\0\0" b"hi"
    b"\1\0\0\0\0\0\0\0" b"w" b"\2\0\0\0"  # w, two dimensions
    b"\x20\0\0\0\0\0\0\0" b"\3\0\0\0\0\0\0\0" b"\x08\0\0\0" b"\0\0\0\0\0\0\0\0"  # Q8_0 at 0
)  # fmt: skip


def golden_parts() -> tuple[tuple[Field, ...], tuple[Tensor, ...]]:
    fields = (gguf_header.u32("a", 7), gguf_header.strings("b", ["hi"]))
    return fields, (Tensor("w", (32, 3), 8, 0),)


def test_a_tiny_header_is_these_bytes() -> None:
    encoded = gguf_header.encode(*golden_parts(), alignment=32)
    assert encoded.rstrip(b"\0") == GOLDEN.rstrip(b"\0")
    assert len(encoded) % 32 == 0


def test_the_golden_bytes_are_read() -> None:
    header = gguf_header.parse(GOLDEN)
    assert (header.fields, header.tensors) == golden_parts()
    assert header.alignment == 32
    assert header.data_offset == gguf_header.pad(len(GOLDEN), 32)
    assert header.tensors[0].size_bytes == 3 * 34
    assert header.data_bytes == 128
    assert [field.value() for field in header.fields] == [7, ["hi"]]


def test_ggufs_own_reader_reads_what_we_write(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf_header.encode(*golden_parts(), alignment=32) + bytes(128))
    reader = gguf.GGUFReader(path)
    assert reader.fields["b"].contents() == ["hi"]
    assert reader.tensors[0].name == "w"
    assert list(reader.tensors[0].shape) == [32, 3]


def test_the_types_are_those_of_libggml() -> None:
    import ctypes

    from coldpress import libllama

    libllama.load()
    ggml = ctypes.CDLL(str(libllama.library_dir() / "libggml-base.so"))
    ggml.ggml_blck_size.restype = ctypes.c_int64
    ggml.ggml_type_size.restype = ctypes.c_size_t
    ggml.ggml_type_name.restype = ctypes.c_char_p
    for type_id, kind in GGML_TYPES.items():
        assert ggml.ggml_blck_size(type_id) == kind.block
        assert ggml.ggml_type_size(type_id) == kind.block_bytes
        assert ggml.ggml_type_name(type_id).decode().upper() == kind.name


NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
SCALARS = st.one_of(
    st.integers(0, 2**32 - 1).map(lambda n: (4, struct.pack("<I", n))),
    st.floats(width=32).map(lambda x: (6, struct.pack("<f", x))),
    st.booleans().map(lambda b: (7, struct.pack("<?", b))),
    st.text(max_size=20).map(lambda text: (8, gguf_values.encode_string(text))),
    st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5).map(
        lambda items: (9, struct.pack(f"<IQ{len(items)}i", 5, len(items), *items))
    ),
    st.lists(st.text(max_size=5), max_size=5).map(
        lambda items: (9, gguf_header.strings("", items).payload)
    ),
)
FIELDS = st.dictionaries(NAMES, SCALARS, max_size=6).map(
    lambda found: tuple(Field(key, kind, raw) for key, (kind, raw) in found.items())
)


@st.composite
def headers(draw: st.DrawFn) -> Header:
    from coldpress.checkpoint.layout import place

    names = draw(st.lists(NAMES, max_size=5, unique=True))
    kinds = st.sampled_from(sorted(GGML_TYPES))
    tensors = []
    for name in names:
        kind = draw(kinds)
        row = draw(st.integers(0, 3)) * GGML_TYPES[kind].block
        rest = draw(st.lists(st.integers(0, 4), max_size=3))
        tensors.append(Tensor(name, (row, *rest), kind, 0))
    fields = draw(FIELDS)
    alignment = draw(st.sampled_from([32, 64, 4096]))
    entry = gguf_header.u32(gguf_header.ALIGNMENT_KEY, alignment)
    placed = place(tensors, alignment)
    encoded = gguf_header.encode((*fields, entry), placed, alignment)
    return Header((*fields, entry), placed, alignment, len(encoded))


@given(headers())
def test_what_is_written_is_read_back(header: Header) -> None:
    encoded = gguf_header.encode(header.fields, header.tensors, header.alignment)
    assert gguf_header.parse(encoded) == header


@given(headers(), st.data())
@settings(max_examples=300)
def test_damage_is_an_error_or_another_header_never_a_crash(
    header: Header, data: st.DataObject
) -> None:
    encoded = bytearray(gguf_header.encode(header.fields, header.tensors, header.alignment))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(encoded) - 1))
        encoded[at] = data.draw(st.integers(0, 255))
    try:
        read = gguf_header.parse(bytes(encoded))
    except InputError as error:
        assert error.hint
    else:
        again = gguf_header.encode(read.fields, read.tensors, read.alignment)
        assert gguf_header.parse(again) == read
        assert len([field.value() for field in read.fields]) == len(read.fields)


@given(headers(), st.data())
def test_a_cut_header_is_an_error(header: Header, data: st.DataObject) -> None:
    encoded = gguf_header.encode(header.fields, header.tensors, header.alignment)
    end = len(encoded.rstrip(b"\0"))
    cut = data.draw(st.integers(0, end - 1))
    if header.tensors:  # a trailing zero may belong to the last offset
        cut = min(cut, end - 9) if end > 9 else 0
        with pytest.raises(InputError):
            gguf_header.parse(encoded[: max(cut, 0)])


def edited(old: bytes, new: bytes) -> bytes:
    assert GOLDEN.count(old) == 1
    return GOLDEN.replace(old, new)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "ends inside"),
        (b"GGML" + GOLDEN[4:], "does not start with GGUF"),
        (edited(b"GGUF\3\0\0\0", b"GGUF\2\0\0\0"), "version is 2"),
        (edited(b"GGUF\3\0\0\0", b"GGUF\0\0\0\3"), "version is"),
        (edited(b"\2\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0a", b"\xff" * 8 + b"\1\0\0\0\0\0\0\0a"), "ends"),
        (edited(b"\2\0\0\0\0\0\0\0hi", b"\xff\xff\xff\xff\xff\xff\xff\x7fhi"), "ends inside"),
        (edited(b"\x08\0\0\0\1\0\0\0\0\0\0\0", b"\x09\0\0\0\1\0\0\0\0\0\0\0"), "array of unknown"),
        (edited(b"b\x09\0\0\0", b"a\x09\0\0\0"), "key a occurs twice"),
        (edited(b"a\4\0\0\0", b"a\x63\0\0\0"), "unknown type 99"),
        (edited(b"w\2\0\0\0", b"w\5\0\0\0"), "5 dimensions"),
        (edited(b"\x20\0\0\0\0\0\0\0", b"\x21\0\0\0\0\0\0\0"), "rows of 33"),
        (edited(b"\x20\0\0\0\0\0\0\0", b"\0\0\0\0\0\0\0\x40"), "impossible shape"),
        (GOLDEN[:-8] + b"\x20" + bytes(7), "offset 32, expected 0"),
        (GOLDEN[:-32] + bytes(4) + GOLDEN[-12:], "rows of 1,"),  # no dimensions; found by fuzzing
        (GOLDEN[:-12] + b"\x1f" + bytes(11), "unknown ggml type 31"),
    ],
)  # fmt: skip
def test_each_kind_of_damage_says_what_is_wrong(data: bytes, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        gguf_header.parse(data)


@pytest.mark.parametrize("alignment", [0, 3, 48, 2**31])
def test_a_senseless_alignment_is_refused(alignment: int) -> None:
    fields = (gguf_header.u32(gguf_header.ALIGNMENT_KEY, alignment),)
    with pytest.raises(InputError, match="power of two"):
        gguf_header.parse(gguf_header.encode(fields, (), 32))


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(gguf_header.encode(*golden_parts(), alignment=32) + bytes(101))
    with pytest.raises(InputError, match="truncated"):
        gguf_header.read(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="empty"):
        gguf_header.read(path)
    with pytest.raises(InputError, match="No such file"):
        gguf_header.read(tmp_path / "absent.gguf")
