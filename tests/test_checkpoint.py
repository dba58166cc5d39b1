"""Checkpoints: the layout, the digests, and llama.cpp as the judge of both."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from coldpress import artifact
from coldpress.checkpoint import CheckpointOptions, checkpoint, gguf_header, verify
from coldpress.checkpoint.layout import execution_order
from coldpress.errors import ColdpressError, InputError, IntegrityError, UsageError

SMALL = CheckpointOptions(chunk_bytes=64 << 10)
WIDTH, HEADS, VOCAB, LAYERS = 64, 4, 96, 3


def write_random_llama(path: Path, seed: int = 0) -> Path:
    """A random Llama in F32 with a byte-level vocabulary, its tensors in no good order."""
    import gguf

    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(2 * WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_tokenizer_model("llama")
    tokens = [f"<{number}>" for number in range(VOCAB)]
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * VOCAB)
    writer.add_token_types([1] * VOCAB)
    shapes = {"output_norm.weight": (WIDTH,), "output.weight": (VOCAB, WIDTH)}
    for layer in reversed(range(LAYERS)):
        block = f"blk.{layer}."
        shapes |= {f"{block}ffn_{name}.weight": (2 * WIDTH, WIDTH) for name in ("up", "gate")}
        shapes |= {f"{block}attn_{name}.weight": (WIDTH, WIDTH) for name in ("v", "k", "q")}
        shapes |= {f"{block}attn_output.weight": (WIDTH, WIDTH)}
        shapes |= {f"{block}ffn_down.weight": (WIDTH, 2 * WIDTH)}
        shapes |= {f"{block}{name}_norm.weight": (WIDTH,) for name in ("ffn", "attn")}
    shapes["token_embd.weight"] = (VOCAB, WIDTH)
    for name, shape in shapes.items():
        writer.add_tensor(name, rng.standard_normal(shape, dtype=np.float32) * 0.1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_llama(tmp_path_factory.mktemp("plain") / "random.gguf")


@pytest.fixture(scope="module")
def made(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "checkpoint"
    checkpoint(plain, out, SMALL)
    return out


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "copy")


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def logits(path: Path) -> bytes:
    from coldpress import libllama

    llama = libllama.load()
    params = llama.llama_model_default_params()
    model = llama.llama_model_load_from_file(str(path).encode(), params)
    assert model
    options = llama.llama_context_default_params()
    options.n_ctx, options.n_threads, options.n_threads_batch = 64, 1, 1
    context = llama.llama_init_from_model(model, options)
    tokens = (llama.llama_token * 5)(1, 7, 30, 42, 90)
    assert llama.llama_decode(context, llama.llama_batch_get_one(tokens, 5)) == 0
    row = np.ctypeslib.as_array(llama.llama_get_logits(context), (VOCAB,)).tobytes()
    llama.llama_free(context)
    llama.llama_model_free(model)
    return row


def test_llama_cpp_computes_the_same_logits_bit_for_bit(plain: Path, made: Path) -> None:
    assert logits(made / "model.gguf") == logits(plain)


def test_every_tensor_keeps_its_bytes_and_starts_on_a_page(plain: Path, made: Path) -> None:
    import gguf

    before = {tensor.name: tensor for tensor in gguf.GGUFReader(plain).tensors}
    after = gguf.GGUFReader(made / "model.gguf").tensors
    assert {tensor.name for tensor in after} == set(before)
    for tensor in after:
        assert tensor.data.tobytes() == before[tensor.name].data.tobytes()
        assert tensor.data_offset % 4096 == 0


def test_tensors_are_in_execution_order(made: Path) -> None:
    names = [tensor.name for tensor in gguf_header.read(made / "model.gguf").tensors]
    block = [
        "attn_norm", "attn_q", "attn_k", "attn_v", "attn_output",
        "ffn_norm", "ffn_gate", "ffn_up", "ffn_down",
    ]  # fmt: skip
    blocks = [f"blk.{layer}.{name}.weight" for layer in range(LAYERS) for name in block]
    assert names == [
        "token_embd.weight",
        *blocks,
        "output_norm.weight",
        "output.weight",
    ]


def test_blocks_are_sorted_by_number_not_by_text_and_unknown_names_keep_their_order() -> None:
    names = ["blk.10.attn_q.weight", "blk.2.zzz.weight", "blk.2.aaa.weight", "rope_freqs.weight",
             "output.weight", "dec.output_norm.weight", "enc.output_norm.weight",
             "enc.blk.1.attn_q.weight", "dec.blk.0.attn_q.weight", "token_embd.weight"]  # fmt: skip
    tensors = [gguf_header.Tensor(name, (1,), 0, 0) for name in names]
    assert [tensor.name for tensor in execution_order(tensors)] == [
        "token_embd.weight", "rope_freqs.weight", "enc.blk.1.attn_q.weight",
        "enc.output_norm.weight", "dec.blk.0.attn_q.weight", "blk.2.zzz.weight",
        "blk.2.aaa.weight", "blk.10.attn_q.weight", "dec.output_norm.weight", "output.weight",
    ]  # fmt: skip


def test_the_index_gives_every_tensors_bytes(plain: Path, made: Path) -> None:
    import gguf

    index = json.loads((made / "model.index.json").read_text())
    raw = (made / "model.gguf").read_bytes()
    for tensor in gguf.GGUFReader(plain).tensors:
        place = index["tensors"][tensor.name]
        assert raw[place["offset"] :][: place["size_bytes"]] == tensor.data.tobytes()
    assert index["files"][0]["sha256"] == artifact.sha256_file(made / "model.gguf")


def test_equal_input_gives_equal_bytes_and_a_checkpoint_of_a_checkpoint_is_itself(
    plain: Path, made: Path, tmp_path: Path
) -> None:
    checkpoint(plain, tmp_path / "again", SMALL)
    checkpoint(made, tmp_path / "twice", SMALL)
    for name in ("model.gguf", "model.index.json"):
        assert (tmp_path / "again" / name).read_bytes() == (made / name).read_bytes()
        assert (tmp_path / "twice" / name).read_bytes() == (made / name).read_bytes()


def test_a_whole_checkpoint_verifies_with_and_without_its_index(made: Path, copy: Path) -> None:
    assert verify(made).indexed
    (copy / "model.index.json").unlink()
    alone = verify(copy / "model.gguf")
    assert not alone.indexed
    assert alone.n_chunks > 3


@pytest.mark.parametrize("indexed", [True, False])
def test_a_flipped_byte_in_any_chunk_is_named(copy: Path, indexed: bool) -> None:
    index = json.loads((copy / "model.index.json").read_text())
    if not indexed:
        (copy / "model.index.json").unlink()
    file = index["files"][0]
    for number in range(len(file["chunk_sha256"])):
        at = file["data_offset"] + number * index["chunk_bytes"] + 17
        flip(copy / "model.gguf", at)
        with pytest.raises(IntegrityError, match=rf"chunk {number} of") as caught:
            verify(copy)
        touched = next(
            name for name, place in index["tensors"].items()
            if place["offset"] <= at < gguf_header.pad(place["offset"] + place["size_bytes"], 4096)
        )  # fmt: skip
        assert touched in caught.value.message or " more)" in caught.value.message
        flip(copy / "model.gguf", at)
    verify(copy)


def test_any_flipped_bit_anywhere_is_found(copy: Path) -> None:
    gguf = copy / "model.gguf"
    size = gguf.stat().st_size
    rng = random.Random(0)
    for indexed in (True, False):
        for at in [*range(0, 64, 5), *(rng.randrange(size) for _ in range(40))]:
            flip(gguf, at)
            with pytest.raises(ColdpressError):
                verify(copy)
            flip(gguf, at)
        if indexed:
            (copy / "model.index.json").unlink()


def test_a_flipped_bit_in_the_header_is_called_that(copy: Path) -> None:
    raw = (copy / "model.gguf").read_bytes()
    flip(copy / "model.gguf", raw.index(b"<42>") + 1)
    with pytest.raises(IntegrityError, match="header differs"):
        verify(copy)
    (copy / "model.index.json").unlink()
    with pytest.raises(IntegrityError, match="header differs"):
        verify(copy)


def test_several_bad_chunks_are_counted(copy: Path) -> None:
    gguf = copy / "model.gguf"
    flip(gguf, gguf.stat().st_size - 1)
    flip(gguf, gguf.stat().st_size - (100 << 10))
    with pytest.raises(IntegrityError, match="2 of"):
        verify(copy)


@pytest.mark.parametrize("indexed", [True, False])
def test_a_truncated_file_is_called_that(copy: Path, indexed: bool) -> None:
    if not indexed:
        (copy / "model.index.json").unlink()
    with (copy / "model.gguf").open("r+b") as stream:
        stream.truncate(stream.seek(0, 2) - 1)
    with pytest.raises(IntegrityError, match="truncated"):
        verify(copy)


def test_the_index_of_another_model_is_called_that(copy: Path, tmp_path: Path) -> None:
    other = write_random_llama(tmp_path / "other.gguf", seed=1)
    checkpoint(other, tmp_path / "other", SMALL)
    shutil.copy(tmp_path / "other" / "model.index.json", copy)
    with pytest.raises(IntegrityError, match="belongs to another model"):
        verify(copy)


def test_a_damaged_index_is_called_that(copy: Path) -> None:
    (copy / "model.index.json").write_text('{"tensors": {}}')
    with pytest.raises(IntegrityError, match=r"model\.index\.json is damaged"):
        verify(copy)


def test_a_plain_gguf_has_nothing_to_verify(plain: Path) -> None:
    with pytest.raises(InputError, match="plain GGUF"):
        verify(plain)


def test_bad_input_leaves_nothing_behind(plain: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(plain.read_bytes()[:-5000])
    with pytest.raises(InputError, match="truncated"):
        checkpoint(broken, tmp_path / "out", SMALL)
    with pytest.raises(InputError, match="does not exist"):
        checkpoint(tmp_path / "absent", tmp_path / "out", SMALL)
    assert sorted(tmp_path.iterdir()) == [broken]


@pytest.mark.parametrize("options", [{"alignment": 100}, {"chunk_bytes": 0}, {"alignment": 16}])
def test_senseless_options_are_usage_errors(options: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        CheckpointOptions(**options)


def test_it_needs_the_standard_library_only() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import coldpress.checkpoint, coldpress;"
        "ours = {m.split('.')[0] for m in sys.modules} - sys.stdlib_module_names;"
        "assert ours <= {'coldpress', '__main__'}, ours"
    )
    root = Path(__file__).resolve().parents[1]
    subprocess.run([sys.executable, "-I", "-S", "-c", code, str(root)], check=True)
