"""Blocks of different shapes: zeros in the checkpoint, gone in the GGUF, and every later stage takes them."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from coldpress import shapes
from coldpress.calibrate import CalibrateOptions, calibrate, statistics
from coldpress.convert import ConvertOptions, convert, reference, trim
from coldpress.distill import DistillOptions, distill
from coldpress.errors import (
    CorruptModelError,
    NotAModelError,
    UnsupportedModelError,
    UsageError,
)
from coldpress.evaluate import EvaluateOptions, evaluate
from coldpress.prune import PruneOptions, parts, prune
from coldpress.prune.measure import Before
from coldpress.quantize import QuantizeOptions, quantize, sensitivity
from coldpress.quantize.types import TYPES
from tests import tiny_models

PRUNE = PruneOptions(ratio=0.45, heterogeneous=True, context=32, max_tokens=512)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(tiny_models.own_text(), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    tiny_models.sentencepiece(folder)
    return tiny_models.save(folder, "llama", scale=2, num_hidden_layers=3)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory, whole: Path, text: Path) -> Path:
    out = tmp_path_factory.mktemp("pruned") / "out"
    prune(whole, out, PRUNE, text=text)
    return out


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory, pruned: Path) -> Path:
    out = tmp_path_factory.mktemp("converted") / "out"
    convert(pruned, out, ConvertOptions())
    return out


def kept(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())["coldpress"]["kept"]
    return found


def test_what_is_taken_out_is_zeros_and_nothing_else_is(pruned: Path) -> None:
    model, found = reference.load_model(pruned), kept(pruned)
    assert set(found["neurons"]) <= {256, 512}
    assert min(found["neurons"]) < 512
    assert False in found["attention"]
    stay = 0
    for layer, neurons, attention in zip(
        model.model.layers, found["neurons"], found["attention"], strict=True
    ):
        for name in ("gate_proj", "up_proj"):
            weight = getattr(layer.mlp, name).weight
            assert weight[:neurons].any(1).all()
            assert not weight[neurons:].any()
        assert not layer.mlp.down_proj.weight[:, neurons:].any()
        for name in "qkvo":
            assert getattr(layer.self_attn, f"{name}_proj").weight.any() == attention
        stay += 3 * 256 * neurons + attention * (2 * 256 * 256 + 2 * 256 * 128 + 256) + 256
    record = json.loads((pruned / "prune.json").read_text())
    outside = 2 * 512 * 256 + 256
    assert record["parameters"] == stay + outside
    assert stay <= 0.55 * 3 * (3 * 256 * 512 + 3 * 256 * 256) + 3 * 512


def test_the_first_part_is_the_cheapest_by_weight(whole: Path) -> None:
    model = reference.load_model(whole).requires_grad_(False)
    tokens = np.random.default_rng(1).integers(3, 512, (6, 32), np.int32)
    before = Before(model, tokens)
    found = [parts._block(model, layer, tokens, 256) for layer in model.model.layers]
    index, part, kl = parts._cheapest(model, found, before, 0.0)
    prices = {}
    for i, layer in enumerate(model.model.layers):
        saved = {name: value.clone() for name, value in layer.state_dict().items()}
        size = parts.weights(found[i])
        for each in ("attention", "neurons"):
            parts._take(found[i], each)
            prices[i, each] = before.kl(model) / (size - parts.weights(found[i]))
            layer.load_state_dict(saved)
            found[i].attention, found[i].neurons = True, 512
    assert min(prices, key=lambda key: prices[key]) == (index, part)
    assert before.kl(model) == pytest.approx(0, abs=1e-6)  # Trying takes nothing out.
    assert kl > 0


def test_the_gguf_is_smaller_and_answers_like_the_checkpoint(pruned: Path, converted: Path) -> None:
    reader = gguf.GGUFReader(converted / "model.gguf")
    assert reader.fields["general.architecture"].contents() == "deci"
    found = kept(pruned)
    assert reader.fields["deci.feed_forward_length"].contents() == found["neurons"]
    heads = reader.fields["deci.attention.head_count_kv"].contents()
    assert heads == [4 * each for each in found["attention"]]
    weights = sum(int(each.n_elements) for each in reader.tensors)
    assert weights == json.loads((pruned / "prune.json").read_text())["parameters"]
    # convert held its logits against transformers' of the padded checkpoint; by how much they differ:
    measured = json.loads((converted / "manifest.json").read_text())["measured"]["parity"]
    assert measured["rms_logit_diff"] < 0.03 * measured["logit_std"]


def test_it_is_calibrated_quantized_searched_and_evaluated(
    pruned: Path, converted: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = (TYPES["Q2_K"], TYPES["Q3_K"], TYPES["Q4_K"])  # All of them take a minute.
    monkeypatch.setattr(sensitivity, "kinds", lambda _inputs: few)
    options = CalibrateOptions(context=32, max_tokens=2048)
    calibrate(pruned, tmp_path / "cal", options, text=text)
    known, found = statistics.read(tmp_path / "cal"), kept(pruned)
    for block, neurons in enumerate(found["neurons"]):
        assert known.hessian(f"blk.{block}.ffn_down.weight").shape == (1, neurons, neurons)
        assert (f"blk.{block}.attn_q.weight" in known.names) == found["attention"][block]
    given = {"calibration": tmp_path / "cal", "model": pruned}
    done = quantize(
        converted, tmp_path / "q", QuantizeOptions(bpw=3.5, probe_tokens=128, tries=2), **given
    )
    assert done.bits_per_weight <= 3.5
    assert done.n_compensated > 0
    judged = tmp_path / "text.txt"
    judged.write_text(" ".join(f"{n} and {n * n}" for n in range(400)), encoding="utf-8")
    asked = EvaluateOptions(profile="fast", speed=False, chunk_tokens=64, n_chunks=2)
    base = tmp_path / "e" / "base"
    evaluate(converted, base, asked, questions=None, text=judged, base=None)
    evaluate(tmp_path / "q", tmp_path / "e" / "q", asked, questions=None, text=judged, base=base)
    result = json.loads((tmp_path / "e" / "q" / "evaluation.json").read_text())
    assert 0 < result["kl"]["mean"] < 5


def test_it_is_taught_and_stays_as_narrow(
    whole: Path, pruned: Path, text: Path, tmp_path: Path
) -> None:
    options = DistillOptions(
        tokens="8k", context=32, batch_tokens=512, evaluate_every=8, rate=3e-4, precision="float32"
    )
    done = distill(whole, tmp_path / "out", options, student=pruned, text=text)
    assert done.kl_after_nats < done.kl_before_nats
    assert kept(tmp_path / "out") == kept(pruned)
    made = convert(tmp_path / "out", tmp_path / "gguf", ConvertOptions())
    assert made.size_bytes < (tmp_path / "out" / "model.safetensors").stat().st_size


def test_weights_where_none_should_be_are_not_dropped(pruned: Path, tmp_path: Path) -> None:
    model = reference.load_model(pruned)
    model.model.layers[0].mlp.down_proj.weight.data[3, -1] = 0.5
    spoiled = tmp_path / "spoiled"
    model.save_pretrained(spoiled)
    config = json.loads((spoiled / "config.json").read_text())
    config["coldpress"]["kept"]["neurons"][0] = 256
    (spoiled / "config.json").write_text(json.dumps(config))
    tiny_models.sentencepiece(spoiled)
    with pytest.raises(CorruptModelError, match=r"blk\.0\.ffn_.* holds weights"):
        convert(spoiled, tmp_path / "out", ConvertOptions())
    assert not (tmp_path / "out").exists()


def test_only_llama_has_shapes(tmp_path: Path, text: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    tiny_models.byte_bpe(folder, tiny_models.QWEN2_RULE)
    tiny_models.save(folder, "qwen2")
    with pytest.raises(UnsupportedModelError, match="llama and mistral"):
        prune(folder, tmp_path / "out", PRUNE, text=text)
    converted = tmp_path / "gguf"
    convert(folder, converted, ConvertOptions(verify=False))
    with pytest.raises(UnsupportedModelError, match="only llama"):
        trim.trim(
            converted / "model.gguf", shapes.Shapes((512, 512), (True, True)), tmp_path / "x.gguf"
        )


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"kept": {}},
        {"kept": {"neurons": [1, 2], "attention": [True]}},
        {"kept": {"neurons": [9], "attention": [True]}},
        {"kept": {"neurons": [0], "attention": [True]}},
        {"kept": {"neurons": ["a"], "attention": [True]}},
        [],
    ],
    ids=str,
)
def test_shapes_of_other_blocks_are_refused(given: Any) -> None:
    config = {"num_hidden_layers": 1, "intermediate_size": 8, "coldpress": given}
    with pytest.raises(NotAModelError, match="coldpress"):
        shapes.of(config)
    assert shapes.of({"num_hidden_layers": 1}) is None


def test_experts_and_influence_have_no_shapes() -> None:
    for more in ({"how": "experts"}, {"by": "influence"}):
        with pytest.raises(UsageError, match="by KL"):
            PruneOptions(ratio=0.2, heterogeneous=True, **more)  # type: ignore[arg-type]


def test_moments_of_what_stays_are_those_of_the_narrow_model(
    pruned: Path, text: Path, tmp_path: Path
) -> None:
    """The statistics' second moment is E[x xᵀ] of the neurons that stay, by a plain loop."""
    options = CalibrateOptions(context=32, max_tokens=512)
    calibrate(pruned, tmp_path / "cal", options, text=text)
    known, model = statistics.read(tmp_path / "cal"), reference.load_model(pruned)
    seen: list[torch.Tensor] = []
    down = model.model.layers[2].mlp.down_proj
    down.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    fit = [row for i, row in enumerate(known.tokens) if i not in known.held]
    with torch.inference_mode():
        for row in fit:
            model(torch.from_numpy(row[None].astype(np.int64)))
    neurons = kept(pruned)["neurons"][2]
    X = torch.cat([each[0, :, :neurons] for each in seen])
    wanted = (X.T @ X / len(X)).numpy()
    assert np.allclose(known.hessian("blk.2.ffn_down.weight")[0], wanted, rtol=1e-3, atol=1e-6)
