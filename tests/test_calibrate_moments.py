"""Second moments, streamed: those of the whole model with hooks; experts; files; damaged weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coldpress.calibrate import (
    CalibrateOptions,
    calibrate,
    imatrix,
    moments,
    names,
    overlap,
    statistics,
    stream,
    weights,
)
from coldpress.calibrate.stage import held_out
from coldpress.convert import reference
from coldpress.errors import CorruptModelError, InputError, UnsupportedModelError
from tests import tiny_models

# Windows far shorter than the context, so that local and global attention differ.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "mistral": {"sliding_window": 8},
    "mixtral": {"num_local_experts": 4},
    "gemma2": {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8},
    "gemma3_text": {
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "phi3": {"sliding_window": 8},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 64},
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 128,
        "shared_expert_intermediate_size": 256,
    },
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 128,
        "head_dim": 32,
    },
}
TOKENS = np.random.default_rng(0).integers(0, tiny_models.VOCAB, (10, 32)).astype(np.int32)
HELD = held_out(len(TOKENS))
FIT = [each for each in range(len(TOKENS)) if each not in HELD]


def streamed(folder: Path, scratch: Path) -> dict[str, moments.Moments]:
    """The moments of each parameter of a model folder, as the product finds them."""
    model = reference.empty_model(folder)
    wanted = {place.parameter for places in names.weights(model).values() for place in places}
    source = weights.Weights(folder, model)
    found = stream.collect(model, source, sorted(wanted), TOKENS, HELD, scratch)
    return {name: each.moments for each in found for name in each.parameters}


def hooked(folder: Path, sequences: list[int]) -> dict[str, list[np.ndarray]]:
    """The oracle: the inputs of each parameter in the whole model, (tokens, inputs) per expert."""
    import torch

    model = reference.load_model(folder)
    seen: dict[tuple[str, int], list[Any]] = {}

    def note(name: str, expert: int, X: Any) -> None:
        seen.setdefault((name, expert), []).append(X.reshape(-1, X.shape[-1]).double())

    def experts(name: str) -> Any:
        def hook(module: Any, given: Any) -> None:
            X, chosen, _ = given
            for expert in range(len(module.down_proj)):
                mine = X[(chosen == expert).any(1)]
                note(f"{name}.gate_up_proj", expert, mine)
                gate, up = (mine @ module.gate_up_proj[expert].T).chunk(2, -1)
                note(f"{name}.down_proj", expert, torch.nn.functional.silu(gate) * up)

        return hook

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            key = f"{name}.weight"
            module.register_forward_pre_hook(lambda _m, x, key=key: note(key, 0, x[0]))
        elif name.endswith("experts"):
            module.register_forward_pre_hook(experts(name))
    with torch.no_grad():
        model(torch.tensor(TOKENS[sequences]).long())
    if model.config.tie_word_embeddings:
        shared = model.get_input_embeddings().weight
        name = next(name for name, each in model.named_parameters() if each is shared)
        seen[name, 0] = seen.pop(("lm_head.weight", 0))
    grouped: dict[str, list[np.ndarray]] = {}
    for (name, _), parts in sorted(seen.items()):
        grouped.setdefault(name, []).append(torch.cat(parts).numpy())
    return grouped


@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_at_a_time_finds_what_the_whole_model_shows(tmp_path: Path, family: str) -> None:
    tiny_models.save(tmp_path, family, **FAMILIES[family])
    found = streamed(tmp_path, tmp_path)
    fit, everything = hooked(tmp_path, FIT), hooked(tmp_path, list(range(len(TOKENS))))
    for name, each in found.items():
        inputs = each.hessian.shape[-1]
        assert each.n_fit.tolist() == [len(X) for X in fit[name]]
        starved = [e for e, X in enumerate(fit[name]) if len(X) < inputs and len(fit[name]) > 1]
        assert list(each.filled) == starved
        mean = np.concatenate(fit[name]).T @ np.concatenate(fit[name])
        mean /= sum(len(X) for X in fit[name])
        for expert, X in enumerate(fit[name]):
            lacking = inputs - len(X) if expert in starved else 0
            H = (X.T @ X + lacking * mean) / (len(X) + lacking)
            np.testing.assert_allclose(each.hessian[expert], H, atol=2e-6 * np.abs(H).max())
        if not starved:
            squares = [(X**2).sum(0) for X in everything[name]]
            np.testing.assert_allclose(each.sums, squares, rtol=2e-5)
    assert found.keys() == {name for name in fit if not name.endswith("shared_expert_gate.weight")}


def test_a_model_that_also_sees_images_is_calibrated_on_its_text_part(tmp_path: Path) -> None:
    tiny_models.save_with_images(tmp_path, **FAMILIES["gemma3_text"])
    found, wanted = streamed(tmp_path, tmp_path), hooked(tmp_path, FIT)
    assert "model.language_model.layers.1.mlp.down_proj.weight" in found
    for name, each in found.items():
        H = wanted[name][0].T @ wanted[name][0] / len(wanted[name][0])
        np.testing.assert_allclose(each.hessian[0], H, atol=2e-6 * np.abs(H).max())


def test_held_rows_are_the_held_out_sequences_inputs(tmp_path: Path) -> None:
    tiny_models.save(tmp_path, "mixtral", num_local_experts=4)
    found, held = streamed(tmp_path, tmp_path), hooked(tmp_path, list(HELD))
    for name, each in found.items():
        assert each.held.shape[1] == max(len(X) for X in held[name])
        for expert, X in enumerate(held[name]):
            rows = each.held[expert, : len(X)]
            order = [np.lexsort(np.round(Y[:, :4], 4).T) for Y in (rows, X)]
            # Float32, as the moments above: the largest inputs are 10 to 100.
            np.testing.assert_allclose(rows[order[0]], X[order[1]], atol=3e-6 * np.abs(X).max())
            assert not each.held[expert, len(X) :].any()


def test_shards_and_batches_change_nothing(
    tmp_path: Path, random_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = reference.load_model(random_llama)
    model.save_pretrained(tmp_path / "shards", max_shard_size="200KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 3
    whole = streamed(random_llama, tmp_path)
    monkeypatch.setitem(stream._BATCH_TOKENS, "cpu", 96)
    monkeypatch.setattr(weights, "_SLAB_WEIGHTS", 4096)
    monkeypatch.setattr(moments, "_PANEL", 100)
    parts = streamed(tmp_path / "shards", tmp_path)
    assert whole.keys() == parts.keys()
    for name, each in whole.items():
        np.testing.assert_allclose(each.hessian, parts[name].hessian, atol=1e-5)


def test_one_block_is_in_memory_at_a_time(
    tmp_path: Path, random_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, present = weights.Weights.load, []

    def spy(self: weights.Weights, parameters: list[str], device: Any) -> None:
        load(self, parameters, device)
        real = [n for n, each in self._model.named_parameters() if not each.is_meta]
        present.append({name.split(".")[2] for name in real if ".layers." in name})
        assert "lm_head.weight" not in real

    monkeypatch.setattr(weights.Weights, "load", spy)
    streamed(random_llama, tmp_path)
    assert present == [set(), {"0"}, {"1"}]


@given(st.integers(1, 30), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=30)
def test_panels_add_up_to_the_whole_product(n: int, d: int, panel: int, seed: int) -> None:
    import torch

    X = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    H = torch.ones(d, d)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moments, "_PANEL", panel)
        moments.add_outer(H, X)
        moments.mirror(H)
    torch.testing.assert_close(H, X.T @ X + 1, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        moments.sum_of_squares(X), (X.double() ** 2).sum(0), rtol=1e-6, atol=0
    )


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.integers(1, 6))
def test_filling_leaves_no_expert_empty(counts: list[int], floor: int) -> None:
    import torch

    if sum(counts) == 0:
        return
    tokens = torch.tensor(counts)
    totals = tokens[:, None].double() * torch.arange(1, len(counts) + 1)[:, None]  # means 1, 2, 3…
    average = float(totals.sum() / tokens.sum())
    means = totals.clone()
    filled = moments.fill(means, tokens, floor)
    for expert, count in enumerate(counts):
        lacking = max(floor - count, 0) if len(counts) > 1 else 0
        assert int(filled[expert]) == count + lacking
        expected = (count * (expert + 1) + lacking * average) / (count + lacking)
        assert float(means[expert, 0]) == pytest.approx(expected)


def test_an_expert_without_a_token_gets_the_average(tmp_path: Path) -> None:
    import torch

    tiny_models.save(tmp_path, "mixtral", num_local_experts=4)
    model = reference.load_model(tmp_path)
    with torch.no_grad():  # Two experts with equal logits win everywhere; the others never do.
        model.model.layers[0].mlp.gate.weight.copy_(torch.zeros(4, 256))
    model.save_pretrained(tmp_path)
    found = streamed(tmp_path, tmp_path)["model.layers.0.mlp.experts.down_proj"]
    empty = [expert for expert, count in enumerate(found.n_fit.tolist()) if count == 0]
    assert len(empty) == 2
    used = [expert for expert in range(4) if expert not in empty]
    assert np.isfinite(found.hessian).all()
    for expert in empty:
        average = found.hessian[used].mean(0)
        np.testing.assert_allclose(found.hessian[expert], average, atol=1e-5 * average.max())
        assert (found.sums[expert] > 0).all()
    assert set(empty) <= set(found.filled)


def break_weight(folder: Path, name: str, value: float) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[name].view(-1)[5] = value
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.mlp.up_proj.weight",
        "model.norm.weight",
        "model.embed_tokens.weight",
        "lm_head.weight",
    ],
)
def test_weights_that_are_not_finite_are_named(
    tmp_path: Path, random_llama: Path, name: str, value: float
) -> None:
    folder = Path(shutil.copytree(random_llama, tmp_path / "model"))
    break_weight(folder, name, value)
    with pytest.raises(CorruptModelError, match=name):
        streamed(folder, tmp_path)


def test_an_overflow_names_the_layer(tmp_path: Path, random_llama: Path) -> None:
    folder = Path(shutil.copytree(random_llama, tmp_path / "model"))
    for name in ("self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj"):
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        tensors[f"model.layers.1.{name}.weight"] *= 1e37
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CorruptModelError, match=r"input of model\.layers\.1\..* becomes infinite"):
        streamed(folder, tmp_path)


def test_a_missing_weight_is_named(tmp_path: Path, random_llama: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(random_llama, tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CorruptModelError, match=r"lack model\.layers\.1\.mlp\.up_proj"):
        streamed(folder, tmp_path)


def test_a_product_out_of_sight_is_refused(tmp_path: Path, random_llama: Path) -> None:
    model = reference.empty_model(random_llama)
    wanted = ["model.layers.0.mlp.up_proj.weight", "lm_head.weight"]
    model.model.layers[0].mlp.forward = lambda x: x
    found = stream.collect(
        model, weights.Weights(random_llama, model), wanted, TOKENS, HELD, tmp_path
    )
    with pytest.raises(UnsupportedModelError, match=r"does not see what .*up_proj"):
        next(found)


@pytest.fixture(scope="module")
def artifact_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What calibrate writes about a small mixture of experts."""
    folder = tmp_path_factory.mktemp("artifact")
    model = folder / "model"
    model.mkdir()
    tiny_models.sentencepiece(model)
    tiny_models.save(model, "mixtral", num_local_experts=4)
    corpus = folder / "corpus.txt"
    corpus.write_text(tiny_models.own_text(), encoding="utf-8")
    calibrate(model, folder / "out", CalibrateOptions(context=32, max_tokens=512), text=corpus)
    return folder / "out"


def test_statistics_are_read_back(artifact_folder: Path) -> None:
    found = statistics.read(artifact_folder)
    assert found.tokens.shape == (16, 32)
    assert found.held == (7, 15)
    assert found.names[0] == "blk.0.attn_q.weight"
    assert found.names[-1] == "output.weight"
    assert found.input_of("blk.1.attn_v.weight") == found.input_of("blk.1.attn_k.weight")
    assert found.input_of("blk.1.ffn_up_exps.weight") == "blk.1.ffn_gate_exps"
    assert found.hessian("blk.0.ffn_down_exps.weight").shape == (4, 512, 512)
    assert found.counts("blk.0.ffn_down_exps.weight").sum() == 2 * 14 * 32  # two experts a token
    assert found.filled("blk.0.ffn_down_exps.weight") == (0, 1, 2, 3)
    assert found.counts("output.weight").tolist() == [14 * 32]
    assert found.filled("output.weight") == ()
    stack = "model.layers.0.mlp.experts.gate_up_proj"
    assert found.places("blk.0.ffn_up_exps.weight")[3] == names.Place(stack, 3, slice(512, 1024))
    with pytest.raises(InputError, match="nothing on blk"):
        found.hessian("blk.9.attn_q.weight")


def test_imatrix_and_second_moments_agree(artifact_folder: Path) -> None:
    """The imatrix is of all sequences: those that H is of, and the held-out rows, all kept here."""
    found, diagonal = (
        statistics.read(artifact_folder),
        imatrix.read(artifact_folder / "imatrix.gguf"),
    )
    assert set(diagonal.sums) == set(found.names)
    for name in found.names:
        H, held = found.hessian(name), found.held_inputs(name)
        if len(H) == 1:
            squares = np.diagonal(H[0]) * found.counts(name)[0] + (held[0] ** 2).sum(0)
            np.testing.assert_allclose(diagonal.sums[name][0], squares, rtol=1e-4)
        else:
            importance = diagonal.importance(name)
            assert importance is not None
            assert (importance > 0).all()
            ours = np.diagonal(H, axis1=1, axis2=2)
            assert np.corrcoef(np.log(ours).ravel(), np.log(importance).ravel())[0, 1] > 0.9


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "statistics.json").unlink(), "no second moments"),
        (lambda f: (f / "statistics.json").write_text("{"), "unreadable"),
        (lambda f: (f / "tokens.npy").unlink(), r"tokens\.npy is missing"),
        (lambda f: (f / "hessian/output.npy").unlink(), r"output\.npy is missing"),
        (lambda f: (f / "hessian/output.npy").write_bytes(b"no"), "not an array"),
        (lambda f: np.save(f / "hessian/output.npy", np.ones((1, 2, 2), np.float32)), "256 inputs"),
        (lambda f: np.save(f / "held/output.npy", np.ones((1, 2, 256))), "float64"),
    ],
)
def test_damaged_statistics_are_refused(
    tmp_path: Path, artifact_folder: Path, damage: Any, message: str
) -> None:
    folder = Path(shutil.copytree(artifact_folder, tmp_path / "copy"))
    damage(folder)
    with pytest.raises(InputError, match=message) as caught:
        statistics.read(folder)
    assert caught.value.hint


def test_a_full_disk_is_told(
    tmp_path: Path, random_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    corpus = tmp_path / "corpus.txt"
    corpus.write_text(tiny_models.own_text(), encoding="utf-8")
    monkeypatch.setattr(statistics.np, "save", full)
    monkeypatch.setattr(overlap, "write", lambda *_args: None)
    with pytest.raises(InputError, match=r"second moments of blk\.0\.attn_q: .*No space left"):
        calibrate(random_llama, tmp_path / "out", CalibrateOptions(32, 64), text=corpus)
    assert not list(tmp_path.glob("out*"))


def test_second_moments_that_are_not_finite_are_refused(
    tmp_path: Path, artifact_folder: Path
) -> None:
    folder = Path(shutil.copytree(artifact_folder, tmp_path / "copy"))
    H = np.load(folder / "hessian/output.npy")
    H[0, 3, 4] = np.nan
    np.save(folder / "hessian/output.npy", H)
    with pytest.raises(InputError, match="not finite"):
        statistics.read(folder).hessian("output.weight")


def test_a_newer_format_is_refused(tmp_path: Path, artifact_folder: Path) -> None:
    folder = Path(shutil.copytree(artifact_folder, tmp_path / "copy"))
    data = json.loads((folder / "statistics.json").read_text()) | {"format_version": 2}
    (folder / "statistics.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match="format 2"):
        statistics.read(folder)


@given(st.integers(2, 200))
def test_about_an_eighth_is_held_out(sequences: int) -> None:
    held = held_out(sequences)
    assert 1 <= len(held) <= max(1, sequences / 8)
    assert len(held) >= sequences // 8
    assert set(held) <= set(range(sequences))
