"""Pruning: what is taken out is what costs least, what stays computes what it should, and it is a model."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coldpress import demo
from coldpress.calibrate import blocks
from coldpress.convert import ConvertOptions, convert, reference
from coldpress.errors import ColdpressError, InputError, UnsupportedModelError, UsageError
from coldpress.prune import PruneOptions, depth, experts, obs, prune, target, width
from coldpress.prune.measure import Before
from tests import tiny_models

RANDOM = np.random.default_rng(0)


def tokens_of(vocabulary: int, sequences: int = 6, context: int = 32) -> Any:
    return np.random.default_rng(1).integers(3, vocabulary, (sequences, context), np.int32)


def logits(model: Any, tokens: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.from_numpy(tokens.astype(np.int64)), use_cache=False).logits  # type: ignore[no-any-return]


def correlated(inputs: int, seed: int = 0) -> torch.Tensor:
    X = np.random.default_rng(seed).normal(size=(4 * inputs, inputs // 2))
    mixed = X @ np.random.default_rng(seed + 1).normal(size=(inputs // 2, inputs))
    mixed += 0.3 * np.random.default_rng(seed + 2).normal(size=mixed.shape)
    return torch.from_numpy(mixed.T @ mixed / len(mixed))


def loss(W: torch.Tensor, kept: torch.Tensor, V: torch.Tensor, H: torch.Tensor) -> float:
    """E‖W x − V x_kept‖², under the second moments that the kernel damps."""
    damped = H.double() + 0.01 * H.double().diagonal().mean() * torch.eye(len(H))
    off = W.double().clone()
    off[:, kept] -= V.double()
    return float(torch.einsum("oi,ij,oj->", off, damped, off))


def best_fit(W: torch.Tensor, kept: torch.Tensor, H: torch.Tensor) -> torch.Tensor:
    damped = H.double() + 0.01 * H.double().diagonal().mean() * torch.eye(len(H))
    return W.double() @ damped[:, kept] @ torch.linalg.inv(damped[kept][:, kept])


@pytest.mark.parametrize(("size", "count"), [(1, 9), (1, 1), (4, 2), (4, 3)])
def test_what_stays_is_the_least_squares_fit(size: int, count: int) -> None:
    W, H = torch.randn(5, 16, generator=torch.Generator().manual_seed(0)), correlated(16)
    groups, V = obs.keep_groups(W, H, size, count)
    columns = (groups[:, None] * size + torch.arange(size)).flatten()
    assert len(groups) == count
    assert torch.allclose(V.double(), best_fit(W, columns, H), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_one_group_goes_as_brute_force_has_it(seed: int) -> None:
    W = torch.randn(5, 12, generator=torch.Generator().manual_seed(seed))
    H = correlated(12, seed)
    groups, V = obs.keep_groups(W, H, 3, 3)
    columns = [
        torch.tensor([3 * g + i for g in each for i in range(3)])
        for each in combinations(range(4), 3)
    ]
    least = min(loss(W, each, best_fit(W, each, H), H) for each in columns)
    chosen = (groups[:, None] * 3 + torch.arange(3)).flatten()
    assert loss(W, chosen, V, H) == pytest.approx(least, rel=1e-4)


def test_refitting_beats_the_largest_weights() -> None:
    W, H = torch.randn(20, 64, generator=torch.Generator().manual_seed(0)), correlated(64)
    kept, V = obs.keep_groups(W, H, 1, 48)
    magnitude = (W.square().sum(0) * H.diagonal()).argsort(descending=True)[:48]
    assert loss(W, kept, V, H) < 0.5 * loss(W, magnitude, W[:, magnitude], H)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of four blocks."""
    folder = tmp_path_factory.mktemp("deep")
    tiny_models.sentencepiece(folder)
    return tiny_models.save(folder, "llama", scale=2, num_hidden_layers=4)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(tiny_models.own_text(), encoding="utf-8")
    return path


def made(folder: Path, family: str, **changes: Any) -> Path:
    """A random model with a tokenizer that its converter takes."""
    model = folder / "model"
    model.mkdir()
    if family.startswith("qwen"):
        tiny_models.byte_bpe(model, tiny_models.QWEN2_RULE)
    else:
        tiny_models.sentencepiece(model)
    return tiny_models.save(model, family, **changes)


def options(**given: Any) -> PruneOptions:
    return PruneOptions(**({"context": 32, "max_tokens": 512} | given))


def test_blocks_go_one_by_one_as_brute_force_has_it(deep: Path) -> None:
    model, tokens = reference.load_model(deep), tokens_of(tiny_models.VOCAB)
    before = Before(model, tokens)
    base = logits(model, tokens).softmax(-1)
    likeliest = base.argsort(descending=True)[..., :128]

    def merged(p: torch.Tensor) -> torch.Tensor:
        named = p.gather(-1, likeliest)
        return torch.cat([named, 1 - named.sum(-1, keepdim=True)], -1)

    def slow_kl(dropped: list[int]) -> float:
        with depth.skipping(model, dropped):
            now = logits(model, tokens).softmax(-1)
        p, q = merged(base), merged(now)
        return float((p * (p / q).log()).sum(-1).mean())

    dropped, costs = depth.search(model, before, 2)
    first = min(range(4), key=lambda i: slow_kl([i]))
    second = min((i for i in range(4) if i != first), key=lambda i: slow_kl([first, i]))
    assert dropped == [first, second]
    assert costs == pytest.approx([slow_kl([first]), slow_kl([first, second])], rel=1e-3)


def test_influence_is_one_minus_the_cosine(deep: Path) -> None:
    model, tokens = reference.load_model(deep), tokens_of(tiny_models.VOCAB)
    with torch.inference_mode():
        ids = torch.from_numpy(tokens.astype(np.int64))
        hidden = model(ids, output_hidden_states=True, use_cache=False).hidden_states
    # The last of them is after the norm: three blocks can be seen so.
    for index in range(3):
        cosine = torch.cosine_similarity(hidden[index], hidden[index + 1], dim=-1)
        found = depth.influence(model, tokens)[index]
        assert found == pytest.approx(float((1 - cosine).mean()), rel=1e-4)


def test_the_checkpoint_is_the_model_without_its_blocks(
    deep: Path, text: Path, tmp_path: Path
) -> None:
    done = prune(deep, tmp_path / "out", options(ratio=0.5), text=text)
    record = json.loads((tmp_path / "out" / "prune.json").read_text())
    model, tokens = reference.load_model(deep), tokens_of(tiny_models.VOCAB)
    with depth.skipping(model, record["details"]["dropped"]):
        wanted = logits(model, tokens)
    found = reference.load_model(tmp_path / "out")
    assert torch.allclose(logits(found, tokens), wanted, rtol=1e-4, atol=1e-4)
    assert done.parameters == sum(each.numel() for each in found.parameters())
    assert len(record["details"]["dropped"]) == 2
    tokenizer = reference.load_tokenizer(tmp_path / "out")
    assert tokenizer("one")["input_ids"] == reference.load_tokenizer(deep)("one")["input_ids"]


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma2"])
@pytest.mark.parametrize("how", ["depth", "width"])
def test_families_load_and_convert(family: str, how: str, text: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"num_hidden_layers": 4, "intermediate_size": 1024}
    if family == "gemma2":
        changes |= {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 512}
    folder = made(tmp_path, family, **changes)
    if (family, how) == ("gemma2", "depth"):
        # Blocks alternate between two kinds, as llama.cpp takes for granted.
        with pytest.raises(UnsupportedModelError, match="alternate"):
            depth.keep(reference.load_model(folder), [1, 2, 3])
        return
    heads = how == "width" and family != "qwen2"
    asked = options(
        how=how, ratio=0.6 if heads else 0.4, multiple=64
    )  # So narrow that heads go too.
    done = prune(folder, tmp_path / "out", asked, text=text)
    assert done.parameters < (0.6 if heads else 0.75) * done.parameters_before
    config = reference.load_model(tmp_path / "out").config
    assert config.num_key_value_heads == (2 if heads else 4)
    converted = convert(tmp_path / "out", tmp_path / "gguf", ConvertOptions())
    assert converted.relative_logit_diff is not None  # Convert refuses one beyond its tolerance.
    assert converted.greedy_agreement is not None


def test_heads_go_with_what_shares_them(deep: Path, tmp_path: Path) -> None:
    """A narrowed block computes what the whole one does when the other heads are silent, but for the fit."""
    model, tokens = reference.load_model(deep), tokens_of(tiny_models.VOCAB)
    attention = model.model.layers[0].self_attn
    wide = attention.o_proj.weight.clone()
    rows = attention.q_proj.weight.clone()
    width._narrow(model, 0, tokens, width.Shape(512, 2), lambda _groups: None)
    assert attention.q_proj.weight.shape == (128, 256)
    assert attention.k_proj.weight.shape == attention.v_proj.weight.shape == (64, 256)
    assert attention.o_proj.weight.shape == (256, 128)
    kept = [g for g in range(4) if (attention.q_proj.weight == rows[64 * g]).all(1).any()]
    assert len(kept) == 2
    fresh = reference.load_model(deep)
    H = width.moments(fresh, fresh.model.layers[0].self_attn.o_proj, tokens)
    columns = torch.tensor([64 * g + i for g in kept for i in range(64)])
    assert torch.allclose(
        attention.o_proj.weight.double(), best_fit(wide, columns, H), rtol=1e-3, atol=1e-4
    )
    assert logits(model, tokens).isfinite().all()


@given(ratio=st.floats(0.05, 0.95))
@settings(max_examples=25, deadline=None)
def test_a_shape_is_the_largest_within_its_target(ratio: float) -> None:
    model = reference.empty_model(demo.MODEL_DIR)
    known = target.sizes(model)
    most = target.most(model, PruneOptions(how="width", ratio=ratio))
    config = model.config
    try:
        shape = width.choose(model, most, 32)
    except UsageError:
        assert ratio > 0.8
        return
    _, layers = blocks.find(model)

    def weights(neurons: int, groups: int) -> int:
        per = 3 * neurons * config.hidden_size
        per += groups * (2 * 2 + 2) * config.head_dim * config.hidden_size
        return per * len(layers) + known.vectors

    assert weights(shape.neurons, shape.groups) <= most
    assert shape.neurons % 32 == 0
    if shape.neurons < config.intermediate_size:
        assert weights(shape.neurons + 32, shape.groups) > most


def test_targets_mean_what_they_say(text: Path, tmp_path: Path) -> None:
    cases = {
        "params": ({"params": "6M"}, 6_000_000),
        "size": ({"size": "2.4MB", "bpw": 4.0}, 4_800_000),
        "speedup": ({"speedup": "1.5x"}, 7_344_384 / 1.5),
    }
    for name, (asked, most) in cases.items():
        done = prune(
            demo.MODEL_DIR,
            tmp_path / name,
            options(by="influence", **asked),
            text=demo.CALIBRATION_TEXT,
        )
        assert done.parameters <= most
        assert done.parameters + 787_000 > most  # One block more would be too much.


def test_the_search_beats_the_quick_ranking_and_chance_on_the_demo_model() -> None:
    model = reference.load_model(demo.MODEL_DIR)
    tokenizer = reference.load_tokenizer(demo.MODEL_DIR)
    ids = tokenizer(demo.CALIBRATION_TEXT.read_text())["input_ids"][: 8 * 256]
    before = Before(model, np.array(ids, np.int32).reshape(8, 256))
    dropped, costs = depth.search(model, before, 2)

    def kl(chosen: tuple[int, ...]) -> float:
        with depth.skipping(model, chosen):
            return before.kl(model)

    others = sorted(kl(pair) for pair in [(0, 1), (2, 5), (3, 4), (5, 6), (1, 7), (4, 6)])
    assert costs[-1] == pytest.approx(kl(tuple(dropped)), rel=1e-5)
    assert costs[-1] < 0.8 * others[len(others) // 2]


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_the_experts_that_answer_least_go(family: str, text: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"num_experts_per_tok": 2, "intermediate_size": 256}
    if family == "mixtral":
        changes |= {"num_local_experts": 6}
    else:
        changes |= {"num_experts": 6, "moe_intermediate_size": 256, "norm_topk_prob": True}
    folder = made(tmp_path, family, **changes)
    done = prune(folder, tmp_path / "out", options(how="experts", ratio=0.2), text=text)
    record = json.loads((tmp_path / "out" / "prune.json").read_text())["details"]
    for dropped, importance in zip(record["dropped"], record["importance"], strict=True):
        assert len(dropped) == 2
        assert sorted(np.argsort(importance)[:2].tolist()) == dropped
    assert done.parameters < done.parameters_before
    # Removing experts is forbidding the router to choose them.
    model, tokens = reference.load_model(folder), tokens_of(tiny_models.VOCAB)
    for layer, dropped in zip(model.model.layers, record["dropped"], strict=True):
        layer.mlp.gate.register_forward_hook(_forbid(dropped, layer.mlp.gate))
    found = logits(reference.load_model(tmp_path / "out"), tokens)
    assert torch.allclose(found, logits(model, tokens), rtol=1e-3, atol=1e-3)
    converted = convert(tmp_path / "out", tmp_path / "gguf", ConvertOptions())
    assert converted.relative_logit_diff is not None


def _forbid(dropped: list[int], gate: Any) -> Any:
    def hook(_gate: Any, args: Any, _output: Any) -> Any:
        scores = torch.nn.functional.linear(args[0].flatten(0, -2), gate.weight)
        scores[:, dropped] = -torch.inf
        top = scores.float().softmax(-1).topk(2, dim=-1)
        return scores, top.values / top.values.sum(-1, keepdim=True), top.indices

    return hook


def test_contributions_are_those_of_a_slow_loop(tmp_path: Path) -> None:
    folder = tiny_models.save(tmp_path, "mixtral", num_local_experts=3, num_experts_per_tok=2)
    stack = reference.load_model(folder).model.layers[0].mlp.experts
    X = torch.randn(7, 256, generator=torch.Generator().manual_seed(0))
    chosen = torch.tensor([[0, 1], [1, 2], [0, 2], [2, 1], [0, 1], [1, 0], [0, 1]])
    weights = torch.rand(7, 2, generator=torch.Generator().manual_seed(1))
    wanted = torch.zeros(3, dtype=torch.float64)
    with torch.no_grad():
        for row in range(7):
            for place in range(2):
                alone = stack(X[row][None], chosen[row, place][None, None], torch.ones(1, 1))
                wanted[chosen[row, place]] += float(weights[row, place] * alone.norm())
        found = experts.contributions(stack, X, chosen, weights)
    assert torch.allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ({}, "one target"),
        ({"ratio": 0.25, "params": "5M"}, "one target"),
        ({"ratio": 1.0}, "ratio"),
        ({"ratio": float("nan")}, "ratio"),
        ({"size": "2MB"}, "bits per weight"),
        ({"speedup": "0.5x"}, "speed-up"),
        ({"params": "lots"}, "count"),
        ({"ratio": 0.5, "how": "length"}, "length"),
    ],
)
def test_a_target_that_cannot_be_meant_is_refused(given_: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        PruneOptions(**given_)


@pytest.mark.parametrize(
    ("given_", "kind", "words"),
    [
        ({"params": "1M"}, UsageError, "alone are"),
        ({"ratio": 0.99}, UsageError, "single block"),
        ({"how": "width", "ratio": 0.99}, UsageError, "no width"),
        ({"how": "experts", "ratio": 0.5}, UnsupportedModelError, "no mixtures"),
    ],
)
def test_what_cannot_be_met_leaves_nothing(
    deep: Path,
    text: Path,
    tmp_path: Path,
    given_: dict[str, Any],
    kind: type[ColdpressError],
    words: str,
) -> None:
    if given_ == {"params": "1M"}:
        given_ = {"params": "100k"}
    with pytest.raises(kind, match=words):
        prune(deep, tmp_path / "out", options(**given_), text=text)
    assert not (tmp_path / "out").exists()


def test_text_that_is_evaluated_on_is_refused(deep: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="share"):
        prune(deep, tmp_path / "out", options(ratio=0.5), text=text, against=[text])
