"""Healing: what is trained is what the bytes say, and never makes a file worse."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from coldpress.calibrate import names
from coldpress.convert import reference
from coldpress.distill import lessons
from coldpress.quantize import heal_text
from coldpress.quantize.encode import encode
from coldpress.quantize.heal import HealOptions, heal
from coldpress.quantize.heal_weights import Bytes, Trainable
from coldpress.quantize.network import Network
from coldpress.quantize.rounding import codebook_format
from coldpress.quantize.source import Floats
from coldpress.quantize.types import TYPES, GgmlType
from tests import tiny_models
from tests.test_network import Weights, reader_of

KINDS = [pytest.param(kind, id=kind.name) for kind in TYPES.values()]
OPTIONS = HealOptions(steps=40, batch_tokens=128, own_tokens=3072, evaluate_every=8, rate=0.01)


def decoded(data: Bytes, kind: GgmlType) -> Floats:
    return np.asarray(
        gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind.name]), np.float32
    )


def encoded(kind: GgmlType, seed: int = 0) -> tuple[Floats, Bytes]:
    W = np.random.default_rng(seed).normal(0, 0.1, (6, 512)).astype(np.float32)
    W[2, :256] = 0
    return W, encode(W, kind, np.ones(512, np.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_the_start_is_the_bytes(kind: GgmlType) -> None:
    W, data = encoded(kind)
    each = Trainable(data, kind, torch.from_numpy(W))
    assert np.array_equal(each.weights().detach().numpy(), decoded(data, kind))
    each.round(at_once=True)
    assert np.array_equal(each.data(), data)


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_follow_what_is_trained(kind: GgmlType) -> None:
    W, data = encoded(kind)
    each = Trainable(data, kind, torch.from_numpy(W))
    assert each.latent is not None
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for scale in each.scales:
            scale.add_(0.3 * torch.randn(scale.shape, generator=random))
        each.latent.add_(torch.randn(each.latent.shape, generator=random))
    each.round(at_once=True)
    found = decoded(each.data(), kind)
    assert np.array_equal(each.weights().detach().numpy(), found)
    changed = (found != decoded(data, kind)).mean()
    assert 0.5 < changed < 1
    fixed = Trainable(data, kind, None)
    assert fixed.latent is None
    fixed.round(at_once=True)
    assert np.array_equal(fixed.data(), data)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind: GgmlType) -> None:
    """Weights are linear in the scales; a latent weight moves its own weight by one step."""
    W, data = encoded(kind)
    each = Trainable(data, kind, torch.from_numpy(W))
    assert each.latent is not None
    out = each.weights()
    G = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
    (out * G).sum().backward()
    # Without rounding in between, the weights are Σ scale · ∂weights/∂scale.
    total = sum(float(scale.grad.sum()) for scale in each.scales if scale.grad is not None)
    assert total / each.reach == pytest.approx(float((out.detach() * G).sum()), rel=1e-3, abs=1e-3)
    assert each.latent.grad is not None
    slope = each.latent.grad.reshape(out.shape) / G
    moved = Trainable(data, kind, torch.from_numpy(W))
    moved._values = moved._values + moved._layout.gap
    assert torch.allclose(moved.weights() - out, slope, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_the_nearest(kind: GgmlType) -> None:
    """By trying every level, or every entry of the grid with every sign that may be."""
    W, data = encoded(kind)
    each = Trainable(data, kind, torch.from_numpy(W))
    x = 3 * each._layout.gap * torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    found = each._layout.nearest(x)
    if kind.name not in codebook_format.FORMATS:
        levels = each._layout.values.unique()
        assert torch.equal(found, each._layout.nearest(found))
        assert ((x - found).abs()[..., None] <= (x[..., None] - levels).abs() * (1 + 1e-6)).all()
        return
    layout = codebook_format.FORMATS[kind.name]
    entries = codebook_format.grid(kind.name, x.device).entries
    for octet, value in zip(x, found, strict=True):
        cost = 0.0
        for group in octet.split(layout.group):
            magnitude = group if layout.signs == "none" else group.abs()
            cost += float((magnitude - entries).square().sum(1).min())
        if layout.signs == "even":
            assert (value < 0).sum() % 2 == 0
            cost += 4 * float(octet.abs().min()) * float(entries.max())  # at most, for one flip
        assert float((octet - value).square().sum()) <= cost * (1 + 1e-5)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    folder = tiny_models.save(
        tmp_path_factory.mktemp("heal"),
        "llama",
        scale=1,
        num_hidden_layers=1,
        intermediate_size=256,
    )
    model = reference.load_model(folder)
    known = Weights(model)
    tokens = np.random.default_rng(0).integers(3, tiny_models.VOCAB, (16, 32), np.int32)
    known.tokens, known.held = tokens, (7, 15)  # type: ignore[attr-defined]
    return Network.load(folder, known, with_vectors(model, 0))  # type: ignore[arg-type]


def with_vectors(model: Any, offset: float) -> Any:
    """A GGUF of a model, its norms raised by ``offset``."""
    layers, reader = names.tensor_names(model.config), reader_of(model)
    for path, value in model.named_parameters():
        if value.ndim == 1:
            name = f"{layers.get_name(path.removesuffix('.weight'))}.weight"
            reader.tensors.append(
                SimpleNamespace(
                    name=name,
                    data=value.detach().numpy() + np.float32(offset),
                    tensor_type=gguf.GGMLQuantizationType.F32,
                    shape=np.array(value.shape),
                    n_elements=value.numel(),
                )
            )
    return reader


def rounded(network: Network, kind: GgmlType) -> dict[str, tuple[GgmlType, Bytes]]:
    return {
        name: (kind, encode(network.unchanged(name).numpy(), kind, None))
        for name in network.matrices
    }


def kl_of(
    network: Network, tensors: dict[str, tuple[GgmlType, Bytes]], norms: dict[str, Floats]
) -> float:
    return network.kl({name: decoded(data, kind) for name, (kind, data) in tensors.items()} | norms)


@pytest.mark.parametrize("kind", [TYPES["Q2_K"], TYPES["IQ2_XXS"]], ids=lambda kind: kind.name)
def test_healing_lowers_kl_on_text_that_was_not_trained_on(
    network: Network, kind: GgmlType
) -> None:
    tensors = rounded(network, kind)
    done = heal(network, tensors, OPTIONS)
    assert done.healed
    # Random text teaches a random model little; how much there is to gain is measured on the demo model.
    assert done.kl_after_nats < 0.9 * done.kl_before_nats
    assert done.kl_before_nats == pytest.approx(kl_of(network, tensors, {}), rel=1e-6)
    after = {name: (kind, done.tensors[name]) for name in tensors}
    assert kl_of(network, after, done.norms) == pytest.approx(done.kl_after_nats, rel=1e-6)
    assert all(done.tensors[name].shape == data.shape for name, (_, data) in tensors.items())
    assert network.kl({}) == 0
    again = heal(network, tensors, OPTIONS)
    assert all(np.array_equal(again.tensors[name], done.tensors[name]) for name in tensors)


def test_what_does_not_help_is_not_kept(network: Network) -> None:
    tensors = rounded(network, TYPES["Q4_K"])
    wild = replace(OPTIONS, vector_rate=9.0, rate=9.0, steps=6, evaluate_every=2, own_tokens=0)
    done = heal(network, tensors, wild)
    assert not done.healed
    assert done.kl_after_nats == done.kl_before_nats
    assert all(np.array_equal(done.tensors[name], data) for name, (_, data) in tensors.items())
    assert not done.norms
    assert all(step.held_kl_nats > done.kl_before_nats for step in done.history)


def test_codes_stay_if_told_so(network: Network) -> None:
    tensors = rounded(network, TYPES["Q8_0"])
    done = heal(network, tensors, replace(OPTIONS, codes=False, steps=4, evaluate_every=4))
    for name, (_, data) in tensors.items():
        before, after = (each.reshape(-1, 34)[:, 2:] for each in (data, done.tensors[name]))
        assert np.array_equal(before, after)


def test_a_file_learns_another_teachers_answers(network: Network) -> None:
    """What the model itself would answer is not what is taught: the teacher is another one."""
    with torch.no_grad():
        teacher = reference.load_model(Path(network.model.config._name_or_path))
        for each in teacher.model.layers[0].mlp.parameters():
            each.mul_(1.5)
    tokens = np.random.default_rng(5).integers(3, tiny_models.VOCAB, (64, 32), np.int32)
    given = lessons.Lessons(tokens, 1.0, (7, 15, 23, 31), teacher=teacher)
    tensors = rounded(network, TYPES["Q4_K"])
    done = heal(network, tensors, replace(OPTIONS, evaluate_every=10), given)
    assert done.healed
    assert done.kl_after_nats < 0.9 * done.kl_before_nats

    def slow_kl(changes: dict[str, Floats]) -> float:
        ids = torch.from_numpy(tokens[list(given.held)].astype(np.int64))
        with torch.inference_mode(), network.replaced(changes):
            now = network.model(ids).logits.log_softmax(-1)
            wanted = teacher(ids).logits.log_softmax(-1)
        return float((wanted.exp() * (wanted - now)).sum(-1).mean())

    before = {name: decoded(data, kind) for name, (kind, data) in tensors.items()}
    after = {name: decoded(done.tensors[name], kind) for name, (kind, _) in tensors.items()}
    assert slow_kl(before) == pytest.approx(done.kl_before_nats, rel=1e-4)
    assert slow_kl(after | done.norms) == pytest.approx(done.kl_after_nats, rel=1e-4)
    # And further from itself than it was.
    assert network.kl({}) == 0


@pytest.mark.parametrize(("family", "offset"), [("llama", 0), ("gemma2", 1)])
def test_norms_are_found(tmp_path: Path, family: str, offset: float) -> None:
    folder = tiny_models.save(tmp_path, family, hidden_size=64, num_hidden_layers=1, head_dim=32)
    model = reference.load_model(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.rand(parameter.shape))
    model.to(torch.bfloat16).save_pretrained(folder)
    network = Network.load(folder, Weights(model), with_vectors(model.float(), offset))  # type: ignore[arg-type]
    norms = [name for name in network._tensors if name.endswith("norm.weight")]
    assert len(norms) > 2
    assert sorted(network.vectors) == sorted(norms)
    for name in norms:
        found = network.parameters({name: network.unchanged(name)})
        (path, values), *_ = found.items()
        assert torch.equal(values, model.get_parameter(path))


def test_own_text_is_drawn_from_the_model(network: Network) -> None:
    known = network.statistics.tokens
    written = heal_text.write(network.model, known, 100 * known.shape[1] + 5, seed=1)
    assert written.shape == (100, known.shape[1])
    assert written.dtype == np.int32
    assert not np.isin(written[:, 16:], [0, 1, 2]).any()
    assert {tuple(row) for row in written[:, 1:16]} <= {
        tuple(row[start : start + 15]) for row in known for start in range(1, len(row) - 14)
    }
    assert np.array_equal(written, heal_text.write(network.model, known, 3205, seed=1))
    # The drawn tokens are as likely as the model's own entropy says.
    with torch.no_grad():
        logits = network.model(torch.from_numpy(written.astype(np.int64))).logits
    logits[..., :3] = -torch.inf
    log_p = logits.double().log_softmax(-1)[:, 15:-1]
    drawn = log_p.gather(2, torch.from_numpy(written[:, 16:, None].astype(np.int64)))[..., 0]
    p = log_p.exp()
    mean, square = (torch.nansum(p * log_p**power, -1) for power in (1, 2))
    spread = float((square - mean**2).sum().sqrt())
    assert float((drawn - mean).sum()) == pytest.approx(0, abs=4 * spread)
    assert spread > 0
