"""The reader for PyTorch users against safetensors' own, over every dtype and every kind of damage."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from coldpress.checkpoint import safetensors_folder, safetensors_header, state_dict
from coldpress.checkpoint.safetensors_folder import index_folder, verify_folder
from coldpress.checkpoint.state_dict import load_state_dict
from coldpress.errors import InputError, IntegrityError, UsageError
from tests.test_checkpoint import flip

DTYPES = [dtype for name, dtype in sorted(state_dict._DTYPES.items()) if name != "F4"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    def whole(tensor: torch.Tensor) -> tuple[object, ...]:
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return tensor.dtype, tensor.shape, data

    return {k: whole(v) for k, v in a.items()} == {k: whole(v) for k, v in b.items()}


def some(seed: int = 0, count: int = 70_000) -> dict[str, torch.Tensor]:
    """Tensors of all dtypes: large, small, odd, scalar and empty."""
    random = torch.Generator().manual_seed(seed)
    found = {}
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        size = dtype.itemsize
        raw = torch.randint(0, 256, (count * size,), dtype=torch.uint8, generator=random)
        if dtype == torch.bool:
            raw &= 1
        found[f"{name}.matrix"] = raw.view(dtype).reshape(-1, 7)
        found[f"{name}.scalar"] = raw[:size].clone().view(dtype).reshape(())
        found[f"{name}.empty"] = raw[:0].clone().view(dtype).reshape(3, 0, 2)
    found["pairs"] = torch.arange(64, dtype=torch.uint8).view(torch.float4_e2m1fn_x2).reshape(4, 16)
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two indexed files of many pieces: chunks of 64 KiB."""
    monkeypatch.setattr(safetensors_folder, "CHUNK_BYTES", 64 << 10)
    monkeypatch.setattr(state_dict, "_PIECE_BYTES", 64 << 10)
    tensors = some()
    names = sorted(tensors)
    (tmp_path / "model").mkdir()
    for number, part in enumerate((names[:20], names[20:]), start=1):
        path = tmp_path / "model" / f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, path, metadata={"format": "pt"})
    index_folder(tmp_path / "model")
    return tmp_path / "model"


def peer(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}


def forget(folder: Path) -> None:
    """Take the files out of the page cache, so that they are read directly."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.mark.parametrize("threads", [1, 2, 16])
@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("cold", [True, False])
def test_it_equals_safetensors_bit_for_bit(
    folder: Path, threads: int, verify: bool, cold: bool
) -> None:
    expected = peer(folder)
    assert len({tensor.dtype for tensor in expected.values()}) >= 20
    if cold:
        forget(folder)
    assert same(load_state_dict(folder, threads=threads, verify=verify), expected)


def test_tensors_are_views_of_one_page_aligned_buffer_per_file(folder: Path) -> None:
    found = load_state_dict(folder)
    storages = {tensor.untyped_storage().data_ptr() for tensor in found.values() if tensor.numel()}
    assert len(storages) == 2
    assert all(pointer % 4096 == 0 for pointer in storages)
    found["float32.matrix"].add_(1)  # writable


@pytest.mark.parametrize("verify", [True, False])
def test_the_way_through_staging_buffers_gives_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch, verify: bool
) -> None:
    """The GPU's way, with the CPU as the device: all of it but pinning and streams."""
    expected = peer(folder)
    forget(folder)
    monkeypatch.setattr(state_dict, "_Direct", state_dict._Staged)
    assert same(load_state_dict(folder, verify=verify, threads=3), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_it_equals_safetensors(folder: Path) -> None:
    found = load_state_dict(folder, "cuda")
    assert all(tensor.is_cuda for tensor in found.values())
    assert same({name: tensor.cpu() for name, tensor in found.items()}, peer(folder))


@pytest.mark.parametrize("failing", ["open", "read"])
def test_without_direct_reads_it_reads_as_others_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    expected = peer(folder)
    forget(folder)
    opened, read = os.open, os.preadv
    refused: set[int] = set()

    def odd_open(path: Path, flags: int) -> int:
        if flags & os.O_DIRECT and failing == "open":
            raise OSError(22, "Invalid argument")
        file = opened(path, flags)
        if flags & os.O_DIRECT:
            refused.add(file)
        return file

    def odd_read(file: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if file in refused and failing == "read":
            raise OSError(22, "Invalid argument")
        return read(file, buffers, offset, flags)

    monkeypatch.setattr(state_dict.os, "open", odd_open)
    monkeypatch.setattr(state_dict.os, "preadv", odd_read)
    assert same(load_state_dict(folder), expected)


def test_every_flipped_byte_is_found_and_its_chunk_named(folder: Path) -> None:
    index = json.loads((folder / "model.index.json").read_text())
    first = 0
    for file in index["files"]:
        path = folder / file["name"]
        places = [file["data_offset"] + n * (64 << 10) + 11 for n in range(0, 20, 6)]
        for at in (*places, file["size_bytes"] - 1):
            flip(path, at)
            number = first + ((at - file["data_offset"]) >> 16)
            for check in (load_state_dict, verify_folder):
                with pytest.raises(IntegrityError, match=rf"{path.name}.*chunk {number} "):
                    check(folder)
            flip(path, at)
        flip(path, 30)
        for check in (load_state_dict, verify_folder):
            with pytest.raises(IntegrityError, match=r"header differs"):
                check(folder)
        flip(path, 30)
        first += len(file["chunk_sha256"])
    assert verify_folder(folder).n_checked > 40
    assert verify_folder(folder, tensors=["int8.matrix"], threads=1).n_checked <= 3


def cut(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size - 1)


def lengthen(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(b"\0")


@pytest.mark.parametrize(
    ("damage", "said"),
    [(cut, "is truncated"), (lengthen, "is too long"), (Path.unlink, "is missing: file 2 of 2")],
)
def test_a_file_that_is_not_whole_is_named(
    folder: Path, damage: Callable[[Path], None], said: str
) -> None:
    path = folder / "model-00002-of-00002.safetensors"
    damage(path)
    for check in (load_state_dict, verify_folder):
        with pytest.raises(IntegrityError, match=rf"{path.name} {said}"):
            check(folder)


def test_an_index_of_another_folder_and_none_at_all(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    path = other / "model-00001-of-00002.safetensors"
    tensors = load_file(path)
    save_file({name: torch.zeros_like(tensor) for name, tensor in tensors.items()}, path)
    index_folder(other)
    shutil.copy(other / "model.index.json", folder)
    with pytest.raises(IntegrityError):
        load_state_dict(folder)
    (folder / "model.index.json").unlink()
    with pytest.raises(InputError, match=r"model\.index\.json does not exist"):
        load_state_dict(folder)
    with pytest.raises(InputError, match="has no safetensors files"):
        load_state_dict(tmp_path, verify=False)
    with pytest.raises(UsageError):
        load_state_dict(folder, threads=0)


def test_indexing_changes_no_file_and_is_repeatable(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    index_folder(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_tensor_in_two_files_is_refused(folder: Path) -> None:
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "again.safetensors")
    with pytest.raises(InputError, match="is in another file too"):
        index_folder(folder)


def test_a_file_without_a_byte_of_data(tmp_path: Path) -> None:
    save_file({"none": torch.empty(0, 4)}, tmp_path / "a.safetensors")
    index_folder(tmp_path)
    assert load_state_dict(tmp_path)["none"].shape == (0, 4)


def written(path: Path, header: object, data: bytes = b"") -> Path:
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_tensors_at_odd_places_are_copied(tmp_path: Path) -> None:
    header = {
        "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [3, 11]},
    }
    written(tmp_path / "odd.safetensors", header, b"abc" + struct.pack("<2f", 1.5, -2))
    index_folder(tmp_path)
    assert load_state_dict(tmp_path)["b"].tolist() == [1.5, -2]


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"[]", "start with {"),
        (b"{]", "Expecting"),
        (b"{" * 3000, "Expecting"),
        ({"a": {"dtype": "F33", "shape": [], "data_offsets": [0, 4]}}, "unknown dtype"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, "not those of its shape"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "expected 0"),
        ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, "no size"),
        ({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, "no size"),
        ({"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}, "no size"),
        ({"a": {"dtype": "F32", "shape": [0, 1 << 62, 4], "data_offsets": [0, 0]}}, "impossible"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, "no place"),
        ({"a": {"dtype": "F32", "shape": {}, "data_offsets": [0, 4]}}, "no shape"),
        ({"a": {"dtype": "F32", "shape": []}}, "wrong keys"),
        ({"a": 5}, "no attribute"),
        ({"__metadata__": {"a": 1}}, "not text"),
        ({"a\ud800": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}, "surrogate"),
        (b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":0}', "twice"),
        (b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,0]}}', "digits"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, "its header says"),
    ],
)  # fmt: skip
def test_each_kind_of_bad_header_says_what_is_wrong(
    tmp_path: Path, header: object, said: str
) -> None:
    path = written(tmp_path / "bad.safetensors", header, bytes(4))
    with pytest.raises(InputError, match=said):
        safetensors_header.read(path)
    with pytest.raises(Exception, match=r"."):  # nor does the peer read it
        load_file(path)


@pytest.mark.parametrize("raw", [b"", b"1234567", bytes(8), b"\xff" * 8, struct.pack("<Q", 99)])
def test_a_file_that_ends_early_is_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "bad.safetensors").write_bytes(raw)
    with pytest.raises(InputError):
        safetensors_header.read(tmp_path / "bad.safetensors")
    with pytest.raises(InputError, match="No such file"):
        safetensors_header.read(tmp_path / "absent.safetensors")


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), min_size=1, max_size=8),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=4)),
        min_size=1,
        max_size=8,
    )
)
@settings(
    max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
def test_what_safetensors_writes_is_read(
    tmp_path: Path, shapes: dict[str, tuple[torch.dtype, list[int]]]
) -> None:
    shapes.pop("__metadata__", None)
    tensors = {name: torch.ones(shape).to(dtype) for name, (dtype, shape) in shapes.items()}
    save_file(tensors, tmp_path / "any.safetensors")
    index_folder(tmp_path)
    assert same(load_state_dict(tmp_path), load_file(tmp_path / "any.safetensors"))
