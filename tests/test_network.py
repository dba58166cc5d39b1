"""The network against transformers' own forward on weights that are put in by hand."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from coldpress.calibrate import names
from coldpress.calibrate.names import Place
from coldpress.convert import reference
from coldpress.errors import InputError
from coldpress.quantize import placement
from coldpress.quantize.network import Network, divergence
from coldpress.quantize.source import Floats
from tests import tiny_models

Q, DOWN, HEAD, EMBEDDINGS = (
    f"{name}.weight" for name in ("blk.0.attn_q", "blk.1.ffn_down", "output", "token_embd")
)
TOKENS = np.random.default_rng(0).integers(0, tiny_models.VOCAB, (5, 24), np.int32)


class Weights:
    """The part of the statistics that a network reads."""

    def __init__(self, model: Any) -> None:
        self._places = names.weights(model)
        self.names = tuple(self._places)

    def places(self, name: str) -> tuple[Place, ...]:
        return self._places[name]


def stored(name: str, rows: torch.Tensor) -> Any:
    """A bf16 tensor as GGUFReader gives it."""
    kind = gguf.GGMLQuantizationType.BF16
    data = gguf.quants.quantize(rows.numpy(), kind)
    return SimpleNamespace(
        name=name,
        data=data,
        tensor_type=kind,
        shape=np.array(rows.shape[::-1]),
        n_elements=rows.numel(),
    )


def reader_of(model: Any) -> Any:
    """A GGUF of a model whose converter keeps every row where it is."""
    tensors = []
    for name, places in names.weights(model).items():
        parts = []
        for place in places:
            whole = model.get_parameter(place.parameter).detach()
            part = whole if place.expert is None else whole[place.expert]
            parts.append(part if place.rows is None else part[place.rows])
        tensors.append(stored(name, torch.stack(parts) if len(parts) > 1 else parts[0]))
    return SimpleNamespace(tensors=tensors)


def noisy(network: Network, name: str, seed: int = 0) -> Floats:
    """A tensor's rows with noise of ten times their size: a random model's logits hardly move."""
    found = network._places[name]
    rows = found.read(network.model.get_parameter(found.parameter)).numpy()
    noise = np.random.default_rng(seed).normal(0, 10 * rows.std(), rows.shape)
    return (rows + noise).astype(np.float32)


def plain_kl(model: Any, changes: Mapping[str, torch.Tensor]) -> float:
    """KL by transformers alone; ``changes`` are whole parameters by their names."""
    tokens = torch.from_numpy(TOKENS.astype(np.int64))
    with torch.no_grad():
        before = model(tokens).logits.double().log_softmax(-1)
        saved = {name: model.get_parameter(name).clone() for name in changes}
        for name, values in changes.items():
            model.get_parameter(name).copy_(values)
        after = model(tokens).logits.double().log_softmax(-1)
        for name, values in saved.items():
            model.get_parameter(name).copy_(values)
    return float((before.exp() * (before - after)).sum(-1).mean())


def permuted(rows: Floats) -> torch.Tensor:
    """Rows of attn_q in GGUF's order → Hugging Face's, by the converter's rule for RoPE."""
    heads = 8
    return torch.from_numpy(
        rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape).copy()
    )


@pytest.fixture(scope="module")
def network(random_llama: Path, random_gguf: Path) -> Network:
    model = reference.empty_model(random_llama)
    found = Network.load(
        random_llama,
        Weights(model),  # type: ignore[arg-type]
        gguf.GGUFReader(random_gguf / "model.gguf"),
    )
    found.measure_on(TOKENS)
    return found


@pytest.fixture(scope="module")
def plain(random_llama: Path) -> Any:
    return reference.load_model(random_llama)


def test_kl_is_that_of_a_plain_forward(network: Network, plain: Any) -> None:
    q, down, head = (noisy(network, name) for name in (Q, DOWN, HEAD))
    network.rebase({})
    parameters = {
        "model.layers.0.self_attn.q_proj.weight": permuted(q),
        "model.layers.1.mlp.down_proj.weight": torch.from_numpy(down),
        "lm_head.weight": torch.from_numpy(head),
    }
    for name, rows, (parameter, values) in zip(
        (Q, DOWN, HEAD), (q, down, head), parameters.items(), strict=True
    ):
        expected = plain_kl(plain, {parameter: values})
        assert expected > 1e-5
        assert network.kl({name: rows}) == pytest.approx(expected, rel=1e-4)
    expected = plain_kl(plain, parameters)
    network.rebase({Q: q})
    assert network.kl({DOWN: down, HEAD: head}) == pytest.approx(expected, rel=1e-4)
    network.rebase({DOWN: down, HEAD: head})
    assert network.kl({Q: q}) == pytest.approx(expected, rel=1e-4)


def test_embeddings_that_are_only_looked_up(network: Network, plain: Any) -> None:
    rows = noisy(network, EMBEDDINGS)
    expected = plain_kl(plain, {"model.embed_tokens.weight": torch.from_numpy(rows)})
    network.rebase({})
    assert network.kl({EMBEDDINGS: rows}) == pytest.approx(expected, rel=1e-4)


def test_nothing_changed_costs_nothing(network: Network) -> None:
    network.rebase({Q: noisy(network, Q)})
    assert network.kl({}) > 1e-5
    network.rebase({})
    assert network.kl({}) == 0
    network.kl({Q: noisy(network, Q), HEAD: noisy(network, HEAD)})
    assert network.kl({}) == 0


def test_a_state_is_worth_what_the_change_to_it_was(network: Network) -> None:
    q = noisy(network, Q)
    network.rebase({})
    before = network.kl({Q: q})
    network.rebase({Q: q})
    assert network.kl({}) == pytest.approx(before, abs=1e-9)
    assert network.kl({Q: noisy(network, Q, seed=1)}) != pytest.approx(before, rel=1e-3)


def test_blocks_before_the_change_are_not_run(network: Network) -> None:
    run: list[int] = []
    network.rebase({})
    hooks = [
        layer.mlp.register_forward_hook(lambda *_, index=index: run.append(index))
        for index, layer in enumerate(network.model.model.layers)
    ]
    ran = {}
    for name in (Q, DOWN, HEAD):
        run.clear()
        network.kl({name: noisy(network, name)})
        ran[name] = set(run)
    for hook in hooks:
        hook.remove()
    assert ran == {Q: {0, 1}, DOWN: {1}, HEAD: set()}


def test_batches_do_not_matter(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    down = noisy(network, DOWN)
    network.rebase({})
    whole = network.kl({DOWN: down})
    monkeypatch.setattr("coldpress.quantize.network._BATCH_TOKENS", 2 * TOKENS.shape[1])
    assert network.kl({DOWN: down}) == pytest.approx(whole, rel=1e-6)


FAMILIES = {
    "llama": {"tie_word_embeddings": True},
    "mixtral": {"num_local_experts": 4, "tie_word_embeddings": False, "sliding_window": None},
    "phi3": {"tie_word_embeddings": False},
    "gemma2": {"head_dim": 32, "query_pre_attn_scalar": 32},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_families(tmp_path: Path, family: str) -> None:
    """Tied embeddings, stacks of experts, fused projections and scaled embeddings."""
    folder = tiny_models.save(
        tmp_path, family, hidden_size=64, intermediate_size=96, **FAMILIES[family]
    )
    model = reference.load_model(folder)
    network = Network.load(folder, Weights(model), reader_of(model))  # type: ignore[arg-type]
    network.measure_on(TOKENS)
    assert network.kl({}) == 0
    for name in network._places:
        rows, found = noisy(network, name), network._places[name]
        parameter = model.get_parameter(found.parameter).detach().clone()
        before = parameter.clone()
        found.write(parameter, torch.from_numpy(rows))
        assert not torch.equal(parameter, before)
        expected = plain_kl(model, {found.parameter: parameter})
        assert network.kl({name: rows}) == pytest.approx(expected, rel=1e-3, abs=1e-8)


def test_a_gguf_of_another_model_is_refused(random_llama: Path) -> None:
    model = reference.load_model(random_llama)
    weights = Weights(model)
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.up_proj.weight")[3, 5] += 1
    with pytest.raises(InputError, match=r"blk\.1\.ffn_up\.weight .* not those"):
        Network.load(random_llama, weights, reader_of(model))  # type: ignore[arg-type]


def test_rows_are_found_in_any_order_even_if_some_are_equal() -> None:
    parameter = torch.arange(3 * 8 * 4).float().reshape(3, 8, 4)
    parameter[1, 2] = parameter[1, 5]  # rows 4 to 8 are meant
    order = [3, 1, 0, 2]
    places = tuple(Place("experts", index, slice(4, 8)) for index in range(3))
    rows = torch.stack([parameter[index, 4:][order] for index in range(3)])
    found = placement.find(stored("t", rows), places, parameter)
    assert torch.equal(found.read(parameter).reshape(3, 4, 4), rows)
    written = torch.zeros_like(parameter)
    found.write(written, rows.flatten(0, 1))
    assert torch.equal(written[:, 4:], parameter[:, 4:])
    assert not written[:, :4].any()


def test_rows_that_pad_the_vocabulary_are_left_alone() -> None:
    parameter = torch.randn(6, 4).bfloat16().float()
    found = placement.find(stored("t", parameter[:5]), (Place("p"),), parameter)
    written = parameter.clone()
    found.write(written, torch.zeros(5, 4))
    assert torch.equal(written, torch.cat([torch.zeros(5, 4), parameter[5:]]))


def test_divergence_is_kl_even_where_it_is_tiny() -> None:
    base = 3 * torch.randn(7, 50, generator=torch.Generator().manual_seed(0))
    for size in (1.0, 1e-2, 1e-4):
        logits = base + size * torch.randn(7, 50, generator=torch.Generator().manual_seed(1)) + 2
        p, q = base.double().log_softmax(-1), logits.double().log_softmax(-1)
        expected = (p.exp() * (p - q)).sum(-1)
        assert torch.allclose(
            divergence(base, logits), expected, rtol=2e-2 if size < 1e-3 else 1e-4
        )
    assert not divergence(base, base.clone()).any()
