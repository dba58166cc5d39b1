"""The calibrate stage: its imatrix equals a slow, obvious computation; the file has llama.cpp's form."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldpress import artifact
from coldpress.calibrate import CalibrateOptions, calibrate, imatrix, names, text
from coldpress.convert import reference
from coldpress.errors import InputError, UnsupportedModelError, UsageError
from tests import tiny_models

OPTIONS = CalibrateOptions(context=64, max_tokens=256)


class Tokens:
    """A stand-in tokenizer: one token per character, BOS first."""

    bos_token_id = 1

    def __call__(self, content: str) -> dict[str, list[int]]:
        return {"input_ids": [1, *(ord(char) for char in content)]}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text(tiny_models.own_text(), encoding="utf-8")
    return path


def test_importance_is_the_mean_square_of_each_layers_input(
    tmp_path: Path, random_llama: Path, corpus: Path
) -> None:
    import torch

    result = calibrate(random_llama, tmp_path / "out", OPTIONS, text=corpus)
    found = imatrix.read(Path(result.path))

    model = reference.load_model(random_llama)
    blocks = text.blocks(reference.load_tokenizer(random_llama), text.read(corpus), 64, 256)
    query: dict[int, list[np.ndarray]] = {0: [], 1: []}
    head = []
    for block in blocks:
        with torch.no_grad():
            states = model(
                torch.tensor(block[None]).long(), output_hidden_states=True
            ).hidden_states
            for layer, rows in query.items():
                rows.append(model.model.layers[layer].input_layernorm(states[layer])[0].numpy())
            head.append(states[-1][0].numpy())  # After the final norm.
    expected = {f"blk.{n}.attn_q.weight": np.concatenate(rows) for n, rows in query.items()}
    expected["output.weight"] = np.concatenate(head)
    for name, X in expected.items():
        importance = found.importance(name)
        assert importance is not None
        np.testing.assert_allclose(importance[0], np.mean(X.astype(np.float64) ** 2, 0), rtol=1e-5)
    assert found.counts["output.weight"].tolist() == [256]
    assert result.n_layers == 15
    assert result.n_tokens == 256


def test_the_file_has_the_form_that_llama_imatrix_writes(
    tmp_path: Path, random_llama: Path, corpus: Path
) -> None:
    result = calibrate(random_llama, tmp_path / "out", OPTIONS, text=corpus)
    reader = gguf.GGUFReader(result.path)
    pairs = {
        key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")
    }
    assert pairs == {
        "general.type": "imatrix",
        "imatrix.datasets": ["corpus.txt"],
        "imatrix.chunk_count": 4,
        "imatrix.chunk_size": 64,
    }
    shapes = {tensor.name: tensor.shape.tolist() for tensor in reader.tensors}
    assert shapes["blk.1.ffn_down.weight.in_sum2"] == [256, 1]
    assert shapes["blk.1.ffn_down.weight.counts"] == [1, 1]
    layers = ("attn_k", "attn_output", "attn_q", "attn_v", "ffn_down", "ffn_gate", "ffn_up")
    wanted = [f"blk.{n}.{layer}.weight" for n in (0, 1) for layer in layers] + ["output.weight"]
    assert list(shapes) == [f"{name}.{part}" for name in wanted for part in ("in_sum2", "counts")]
    artifact.verify(tmp_path / "out")


def test_llama_imatrix_finds_the_same(
    tmp_path: Path, random_llama: Path, random_gguf: Path, peers: Path
) -> None:
    import subprocess

    corpus = tmp_path / "corpus.txt"
    corpus.write_text(tiny_models.own_text()[:4000], encoding="utf-8")
    options = CalibrateOptions(context=64, max_tokens=1 << 20)
    ours = imatrix.read(Path(calibrate(random_llama, tmp_path / "out", options, text=corpus).path))
    peer = tmp_path / "peer.gguf"
    command = [peers / "llama-imatrix", "-m", random_gguf / "model.gguf", "-f", corpus, "-o", peer]
    command += ["-c", "64", "-b", "64", "-ub", "64", "--process-output", "--no-ppl", "-t", "1"]
    subprocess.run(command, check=True, capture_output=True)
    theirs = imatrix.read(peer)
    assert ours.chunk_count == theirs.chunk_count
    assert ours.sums.keys() == theirs.sums.keys()
    for name, counts in ours.counts.items():
        assert counts.tolist() == theirs.counts[name].tolist()
        # The peer runs the bf16 weights on bf16 activations.
        np.testing.assert_allclose(ours.sums[name], theirs.sums[name], rtol=0.02)


def test_a_shared_head_has_the_embeddings_name(tmp_path: Path) -> None:
    tiny_models.save(tmp_path, "llama", tie_word_embeddings=True)
    places = names.weights(reference.empty_model(tmp_path))
    assert places["token_embd.weight"] == (names.Place("model.embed_tokens.weight"),)
    assert places["blk.1.ffn_down.weight"] == (names.Place("model.layers.1.mlp.down_proj.weight"),)
    assert "output.weight" not in places


def test_stacked_experts_have_a_place_each(tmp_path: Path) -> None:
    tiny_models.save(tmp_path, "mixtral", num_local_experts=2)
    places = names.weights(reference.empty_model(tmp_path))
    stack = "model.layers.1.mlp.experts.gate_up_proj"
    assert places["blk.1.ffn_up_exps.weight"] == tuple(
        names.Place(stack, expert, slice(512, 1024)) for expert in (0, 1)
    )
    assert places["blk.1.ffn_gate_exps.weight"][1].rows == slice(0, 512)
    assert not any("gate_inp" in name for name in places)


def test_matrices_that_gguf_has_no_name_for_are_refused(tmp_path: Path) -> None:
    import torch

    tiny_models.save(tmp_path, "llama")
    model = reference.empty_model(tmp_path)
    model.model.layers[0].mlp.extra = torch.nn.Linear(2, 2)
    with pytest.raises(UnsupportedModelError, match=r"mlp\.extra\.weight has no name"):
        names.weights(model)
    model.model.layers[0].mlp.extra = torch.nn.Conv1d(2, 2, 2)
    with pytest.raises(UnsupportedModelError, match="not in a linear layer"):
        names.weights(model)


def test_an_unknown_family_is_refused(tmp_path: Path) -> None:
    tiny_models.save(tmp_path, "llama")
    model = reference.empty_model(tmp_path)
    model.config.model_type = "no_such_model"
    with pytest.raises(UnsupportedModelError, match="no_such_model"):
        names.weights(model)


@given(st.integers(0, 500), st.integers(2, 40), st.integers(2, 9))
def test_blocks_are_whole_apart_and_start_with_bos(length: int, context: int, count: int) -> None:
    content = "".join(chr(100 + index) for index in range(length))
    if length + 1 < 2 * context:
        with pytest.raises(InputError, match="fewer than two contexts"):
            text.blocks(Tokens(), content, context, count * context)
        return
    cut = text.blocks(Tokens(), content, context, count * context).tolist()
    assert 2 <= len(cut) == min(count, (length + 1) // context)
    assert all(len(block) == context and block[0] == 1 for block in cut)
    tails = [token for block in cut for token in block[1:]]
    assert len(set(tails)) == len(tails)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty"), (b" \n", "empty"), (b"a\0b", "zero bytes"), (b"\xff\xfe\xfa", "UTF-8")],
)
def test_text_that_calibrates_nothing_is_refused(
    tmp_path: Path, random_llama: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        calibrate(random_llama, tmp_path / "out", OPTIONS, text=path)
    assert not list(tmp_path.glob("out*"))


def test_a_missing_text_is_refused(tmp_path: Path, random_llama: Path) -> None:
    with pytest.raises(InputError, match="not a file"):
        calibrate(random_llama, tmp_path / "out", OPTIONS, text=tmp_path / "none")


def test_an_expert_without_a_token_counts_every_input_the_same() -> None:
    found = imatrix.Imatrix(
        sums={"w": np.array([[4, 8], [0, 0]], dtype=np.float32)},
        counts={"w": np.array([2, 0], dtype=np.float32)},
        datasets=(),
        chunk_count=1,
        chunk_size=2,
    )
    importance = found.importance("w")
    assert importance is not None
    assert importance.tolist() == [[2, 4], [1, 1]]
    assert importance.dtype == np.float32
    assert found.importance("v") is None


def test_a_file_that_is_no_imatrix_is_refused(tmp_path: Path, random_gguf: Path) -> None:
    (tmp_path / "text").write_text("no")
    for path in (tmp_path / "text", tmp_path / "none", random_gguf / "model.gguf"):
        with pytest.raises(InputError):
            imatrix.read(path)


@pytest.mark.parametrize("values", [(1, 100), (512, 1023)])
def test_options_that_run_nothing_are_refused(values: tuple[int, int]) -> None:
    with pytest.raises(UsageError):
        CalibrateOptions(*values)
