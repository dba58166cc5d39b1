"""Every family from a Hugging Face folder to a quantized file in libllama, by way of the stages.

The oracle is transformers: with the original weights for the converted file, and with the very
weights that the quantized file decodes to for that one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from coldpress import artifact
from coldpress.calibrate import CalibrateOptions, calibrate, imatrix, statistics
from coldpress.convert import ConvertOptions, convert, parity, reference
from coldpress.quantize import QuantizeOptions, quantize
from coldpress.quantize.source import is_quantizable
from tests import tiny_models

Logits = parity.Logits


@dataclass(frozen=True)
class Family:
    """A tiny model: changes to its config, its tokenizer, how near libllama's logits come."""

    changes: dict[str, Any]
    bytes_of: str | None = None  # A byte-level BPE's splitting rule; None for SentencePiece.
    tolerance: float = 1e-5
    tokens_agree: bool = True


_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 256}
_GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16}
_QWEN = tiny_models.QWEN2_RULE
FAMILIES = {
    "llama": Family({"tie_word_embeddings": False}),
    "mistral": Family({}),
    "mixtral": Family({"num_local_experts": 4}, tolerance=2e-5),
    "gemma2": Family(_GEMMA, tolerance=1e-3),  # ggml's GELU table
    "gemma3_text": Family(
        _GEMMA | {"num_hidden_layers": 6}, tolerance=1e-3
    ),  # one layer in six is global
    # Phi-3's own tokenizer starts with a space, and its converter takes that for granted.
    "phi3": Family({}, tokens_agree=False),
    "qwen2": Family({"tie_word_embeddings": True}, _QWEN),
    "qwen3": Family({"head_dim": 64}, _QWEN),
    "qwen2_moe": Family(_EXPERTS | {"shared_expert_intermediate_size": 256}, _QWEN),
    "qwen3_moe": Family(_EXPERTS | {"head_dim": 32, "norm_topk_prob": True}, _QWEN),
}


@dataclass(frozen=True)
class Made:
    """A family's folders."""

    family: Family
    model: Path
    base: Path
    calibration: Path
    quantized: Path


@pytest.fixture(scope="module", params=FAMILIES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """One family through convert, calibrate and quantize."""
    family = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    model = folder / "model"
    model.mkdir()
    if family.bytes_of is None:
        tiny_models.sentencepiece(model)
    else:
        tiny_models.byte_bpe(model, family.bytes_of)
    tiny_models.save(model, request.param, **family.changes)
    text = folder / "text.txt"
    text.write_text(tiny_models.own_text()[:6000], encoding="utf-8")
    # Not a name with the family's in it: libllama wants more of a vocabulary that is called phi3.
    convert(model, folder / "base", ConvertOptions(outtype="f32", name="random"))
    options = CalibrateOptions(context=64, max_tokens=1 << 20)
    calibrate(model, folder / "calibration", options, text=text)
    quantize(
        folder / "base",
        folder / "quantized",
        QuantizeOptions(type="Q4_K"),
        calibration=folder / "calibration",
    )
    return Made(family, model, folder / "base", folder / "calibration", folder / "quantized")


def test_logits_are_those_of_transformers(made: Made) -> None:
    measured = artifact.verify(made.base).measured
    assert measured["tokens_agree"] == made.family.tokens_agree
    found = measured["parity"]
    assert found["greedy_agreement"] == 1.0
    assert found["rms_logit_diff"] / found["logit_std"] < made.family.tolerance


def test_every_quantized_matrix_has_second_moments(made: Made) -> None:
    known = statistics.read(made.calibration)
    tensors = gguf.GGUFReader(made.base / "model.gguf").tensors
    quantized = {tensor.name: tensor for tensor in tensors if is_quantizable(tensor)}
    looked_up = {"token_embd.weight"} if "output.weight" in quantized else set()
    assert set(known.names) == quantized.keys() - looked_up
    for name in known.names:
        experts, inputs, _ = known.hessian(name).shape
        shape = quantized[name].shape.tolist()
        assert (inputs, experts) == (shape[0], shape[2] if len(shape) == 3 else 1)


@pytest.mark.parametrize("made", ["mixtral", "qwen2_moe", "qwen3_moe"], indirect=True)
def test_llama_imatrix_finds_the_same_of_experts(made: Made, peers: Path, tmp_path: Path) -> None:
    import subprocess

    ours = imatrix.read(made.calibration / "imatrix.gguf")
    text, peer = made.model.parent / "text.txt", tmp_path / "peer.gguf"
    command = [peers / "llama-imatrix", "-m", made.base / "model.gguf", "-f", text, "-o", peer]
    # Attention and its cache in float32, or tokens near a border go to other experts there.
    command += ["-fa", "off", "-ctk", "f32", "-ctv", "f32", "--no-repack"]
    command += ["-c", "64", "-b", "64", "-ub", "64", "--process-output", "--no-ppl", "-t", "1"]
    subprocess.run(command, check=True, capture_output=True)
    theirs, known = imatrix.read(peer), statistics.read(made.calibration)
    compared = 0
    for name in ours.sums:
        for expert in set(range(len(ours.counts[name]))) - set(known.filled(name)):
            assert ours.counts[name][expert] == theirs.counts[name][expert]
            found, wanted = ours.sums[name][expert], theirs.sums[name][expert]
            np.testing.assert_allclose(found, wanted, rtol=1e-4)
            compared += "_exps" in name
    assert compared > 4


def test_a_quantized_file_runs_as_its_weights_say(made: Made) -> None:
    import torch

    sequences = [np.random.default_rng(0).integers(3, tiny_models.VOCAB, 48).tolist()]
    with parity.load(made.quantized / "model.gguf") as loaded:
        ours = [loaded.logits(ids) for ids in sequences]
    original = parity.reference_logits(made.model, sequences)
    model = reference.load_model(made.model)
    with torch.no_grad():
        for parameter, value in decoded(made, model):
            model.get_parameter(parameter).copy_(value)
        theirs = [model(torch.tensor([ids])).logits[0].numpy() for ids in sequences]
    rounding = parity.compare(theirs, original)
    difference = parity.compare(ours, theirs)
    # What is left is ggml's rounding of activations to 8 bits: measured 0.08 to 0.13.
    assert difference.rms_logit_diff < 0.3 * rounding.rms_logit_diff


def decoded(made: Made, model: Any) -> Iterator[tuple[str, Any]]:
    """The parameters of the Hugging Face model as the quantized file has them.

    The rows of a GGUF tensor may be in another order (RoPE): they are found again by the
    unquantized file's rows, which are the original's to the bit.
    """
    import torch

    known = statistics.read(made.calibration)
    files = [gguf.GGUFReader(folder / "model.gguf") for folder in (made.base, made.quantized)]
    before, after = ({each.name: each for each in file.tensors} for file in files)
    changed: dict[str, Any] = {}
    for name in before.keys() & {*known.names, "token_embd.weight"}:
        old, new = (
            gguf.quants.dequantize(each.data, each.tensor_type).reshape(-1, int(each.shape[0]))
            for each in (before[name], after[name])
        )
        assert (old != new).any()
        if name not in known.names:
            changed["model.embed_tokens.weight"] = torch.from_numpy(new)
            continue
        places = known.places(name)
        for place, rows, values in zip(
            places, np.split(old, len(places)), np.split(new, len(places)), strict=True
        ):
            whole = changed.setdefault(
                place.parameter, model.get_parameter(place.parameter).detach().clone()
            )
            part = whole if place.expert is None else whole[place.expert]
            part = part if place.rows is None else part[place.rows]
            ours, theirs = (np.lexsort(each[:, :4].T) for each in (rows, part.numpy()))
            assert (part.numpy()[theirs] == rows[ours]).all()
            part[torch.from_numpy(theirs)] = torch.from_numpy(values[ours])
    yield from changed.items()
