"""Shards and the way back: judged by llama.cpp, by its gguf-split, and by a second reader."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coldpress.checkpoint import (
    CheckpointOptions,
    checkpoint,
    gguf_header,
    parse_chunks,
    plain,
    shards,
    source,
    verify,
)
from coldpress.checkpoint.gguf_header import Header, Tensor
from coldpress.checkpoint.layout import execution_order
from coldpress.errors import InputError, IntegrityError, UsageError
from tests import second_reader
from tests.test_checkpoint import flip, logits, write_random_llama
from tests.test_checkpoint_header import headers

CHUNK = 64 << 10
SHARDED = CheckpointOptions(chunk_bytes=CHUNK, shards=4)


@pytest.fixture(scope="module")
def random(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_llama(tmp_path_factory.mktemp("random") / "random.gguf")


@pytest.fixture(scope="module")
def made(random: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sharded") / "checkpoint"
    checkpoint(random, out, SHARDED)
    return out


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "copy")


def shard(folder: Path, number: int, count: int = 4) -> Path:
    return folder / shards.name("model", number, count)


def tensors(path: Path) -> dict[str, bytes]:
    """Every tensor's bytes, by the peer's reader."""
    import gguf

    return {tensor.name: tensor.data.tobytes() for tensor in gguf.GGUFReader(path).tensors}


def test_stock_llama_cpp_loads_shards_and_computes_the_same_logits(
    random: Path, made: Path
) -> None:
    assert sorted(path.name for path in made.glob("*.gguf")) == [
        f"model-0000{number}-of-00004.gguf" for number in (1, 2, 3, 4)
    ]
    assert logits(shard(made, 0)) == logits(random)


def test_gguf_split_merges_them_into_the_same_tensors(
    random: Path, made: Path, peers: Path, tmp_path: Path
) -> None:
    merged = tmp_path / "merged.gguf"
    subprocess.run(
        [peers / "llama-gguf-split", "--merge", shard(made, 0), merged],
        check=True,
        capture_output=True,
    )
    assert tensors(merged) == tensors(random)
    assert logits(merged) == logits(random)
    with pytest.raises(InputError, match="was merged from shards"):
        verify(merged)
    checkpoint(merged, tmp_path / "again", CheckpointOptions(chunk_bytes=CHUNK))
    checkpoint(random, tmp_path / "first", CheckpointOptions(chunk_bytes=CHUNK))
    again, first = (tmp_path / name / "model.gguf" for name in ("again", "first"))
    assert again.read_bytes() == first.read_bytes()


def test_what_gguf_split_made_is_read(
    random: Path, made: Path, peers: Path, tmp_path: Path
) -> None:
    tool = [peers / "llama-gguf-split", "--split", "--split-max-tensors", "7"]
    subprocess.run([*tool, random, tmp_path / "peer"], check=True, capture_output=True)
    first = next(tmp_path.glob("peer-00001-of-*.gguf"))
    checkpoint(first, tmp_path / "ours", SHARDED)
    for path in made.glob("model*"):
        assert (tmp_path / "ours" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("count", [None, 2, 4])
def test_a_reader_written_from_the_page_agrees(
    random: Path, tmp_path: Path, count: int | None
) -> None:
    out = tmp_path / "made"
    checkpoint(random, out, CheckpointOptions(chunk_bytes=CHUNK, shards=count))
    assert second_reader.read(out) == tensors(random)
    victim = sorted(out.glob("*.gguf"))[-1]
    flip(victim, victim.stat().st_size - 5)
    with pytest.raises(AssertionError, match="chunk"):
        second_reader.read(out)


def test_a_tensor_is_never_cut_and_a_large_one_stands_alone() -> None:
    sizes = [10, 20, 5, 100, 1, 1]
    some = [Tensor(str(at), (size * 1024,), 0, 0) for at, size in enumerate(sizes)]
    groups = shards.by_size(some, 4096, 32 * 4096)
    assert [[t.name for t in group] for group in groups] == [["0", "1"], ["2"], ["3"], ["4", "5"]]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.data())
def test_shards_by_number_are_as_many_as_asked_in_order_and_balanced(
    sizes: list[int], data: st.DataObject
) -> None:
    some = [Tensor(str(at), (size * 1024,), 0, 0) for at, size in enumerate(sizes)]
    count = data.draw(st.integers(1, len(sizes)))
    groups = shards.by_count(some, 4096, count)
    assert len(groups) == count and all(groups)
    assert [t for group in groups for t in group] == some
    largest = max(sum(t.size_bytes for t in group) for group in groups)
    assert largest <= max(max(sizes) * 4096, -(-sum(sizes) // count) * 4096 + max(sizes) * 4096)


def test_shards_by_size_and_senseless_numbers(random: Path, tmp_path: Path) -> None:
    options = CheckpointOptions(chunk_bytes=CHUNK, shard_bytes=100 << 10)
    made = checkpoint(random, tmp_path / "made", options)
    assert made.n_files > 3
    verify(tmp_path / "made")
    for senseless in ({"shards": 1}, {"shards": 2, "shard_bytes": 1 << 20}, {"shard_bytes": 5}):
        with pytest.raises(UsageError):
            CheckpointOptions(**senseless)
    with pytest.raises(UsageError, match="cannot be divided into 899"):
        checkpoint(random, tmp_path / "more", CheckpointOptions(shards=900))
    assert not (tmp_path / "more").exists()


@pytest.mark.parametrize("indexed", [True, False])
def test_every_file_is_proven_by_the_first(copy: Path, indexed: bool) -> None:
    if not indexed:
        (copy / "model.index.json").unlink()
    whole = verify(copy)
    assert (whole.n_files, whole.indexed) == (4, indexed)
    assert verify(shard(copy, 0)).root_sha256 == whole.root_sha256
    alone = verify(shard(copy, 2))
    assert alone.n_files == 1 and alone.n_chunks < whole.n_chunks
    for number in range(4):
        path = shard(copy, number)
        for at in (path.stat().st_size - 1, 300):
            flip(path, at)
            with pytest.raises((IntegrityError, InputError), match=path.name):
                verify(copy)
            flip(path, at)


@pytest.mark.parametrize("indexed", [True, False])
def test_a_missing_shard_is_named(copy: Path, indexed: bool) -> None:
    if not indexed:
        (copy / "model.index.json").unlink()
    shard(copy, 2).unlink()
    with pytest.raises(IntegrityError, match=r"model-00003-of-00004\.gguf is missing: file 3 of 4"):
        verify(copy)


@pytest.mark.parametrize("indexed", [True, False])
def test_a_shard_of_another_model_is_named(copy: Path, tmp_path: Path, indexed: bool) -> None:
    other = write_random_llama(tmp_path / "other.gguf", seed=1)
    checkpoint(other, tmp_path / "other", SHARDED)
    shutil.copy(shard(tmp_path / "other", 2), copy)
    if not indexed:
        (copy / "model.index.json").unlink()
    with pytest.raises(IntegrityError, match=r"model-00003-of-00004.* another model"):
        verify(copy)


def test_an_index_of_a_model_with_other_files_is_called_that(copy: Path, random: Path) -> None:
    checkpoint(random, copy.parent / "one", CheckpointOptions(chunk_bytes=CHUNK))
    shutil.copy(copy.parent / "one" / "model.index.json", copy)
    with pytest.raises(IntegrityError, match="belongs to another model"):
        verify(copy)


def test_some_chunks_and_tensors_can_be_checked_alone(copy: Path) -> None:
    index = json.loads((copy / "model.index.json").read_text())
    place = index["tensors"]["output.weight"]
    path = copy / index["files"][place["file"]]["name"]
    flip(path, place["offset"] + 7)
    with pytest.raises(IntegrityError, match=r"chunk \d+ of .*output"):
        verify(copy, tensors=["output.weight"])
    assert verify(copy, tensors=["token_embd.weight"], threads=2).n_checked == 1
    total = sum(len(file["chunk_sha256"]) for file in index["files"])
    assert verify(copy, numbers=range(2)).n_checked == 2
    with pytest.raises(IntegrityError, match=path.name):
        verify(copy, numbers=[0, total - 1], threads=1)
    with pytest.raises(UsageError, match=f"no chunk {total}"):
        verify(copy, numbers=[total])
    with pytest.raises(UsageError, match=r"no tensor 'nowhere'"):
        verify(copy, tensors=["nowhere"])


def test_chunks_in_words() -> None:
    assert (parse_chunks("7"), parse_chunks("0-2")) == (range(7, 8), range(3))
    for text in ("", "a", "3-1", "-1", "1-", "1" * 12):
        with pytest.raises(UsageError):
            parse_chunks(text)


def test_the_way_back_is_one_plain_file(random: Path, made: Path, tmp_path: Path) -> None:
    plain(made, tmp_path / "plain")
    back = tmp_path / "plain" / "model.gguf"
    assert tensors(back) == tensors(random)
    keys = {field.key for field in gguf_header.read(back).fields}
    assert keys == {field.key for field in gguf_header.read(random).fields}
    with pytest.raises(InputError, match="plain GGUF"):
        verify(back)


def write_any(path: Path, header: Header) -> None:
    """A GGUF of this header, its data bytes that tell their place."""
    encoded = gguf_header.encode(header.fields, header.tensors, header.alignment)
    data = bytes(at * 7 % 251 for at in range(header.data_bytes))
    path.write_bytes(encoded + data)


def model(path: Path) -> tuple[object, dict[str, object]]:
    """What a file means: its metadata, and each tensor's type, shape and bytes."""
    read = source.read(path)
    means = {}
    for tensor in read.tensors:
        file, at = read.places[tensor.name]
        data = read.paths[file].read_bytes()[at : at + tensor.size_bytes]
        means[tensor.name] = (tensor.type, tensor.shape, data)
    return read.fields, means


@given(headers(), st.sampled_from([None, 2, 3]))
@settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
def test_any_gguf_comes_back(tmp_path: Path, header: Header, count: int | None) -> None:
    if not header.tensors or (count or 0) > len(header.tensors) + 1:
        return
    for name in ("c", "p", "again"):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
    write_any(tmp_path / "any.gguf", header)
    options = CheckpointOptions(chunk_bytes=4096, shards=count)
    checkpoint(tmp_path / "any.gguf", tmp_path / "c", options)
    verify(tmp_path / "c")
    plain(tmp_path / "c", tmp_path / "p")
    assert model(tmp_path / "p") == model(tmp_path / "any.gguf")
    order = [tensor.name for tensor in source.read(tmp_path / "p").tensors]
    assert order == [tensor.name for tensor in execution_order(header.tensors)]
    checkpoint(tmp_path / "p", tmp_path / "again", options)
    for path in (tmp_path / "c").glob("model*"):
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
