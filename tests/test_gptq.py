"""GPTQ: the rounding against a slow obvious version, the format against bytes, and gptqmodel as the peer."""

import inspect
import json
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks import gptqmodel_peer
from coldpress.calibrate import statistics
from coldpress.convert import ConvertOptions, convert, reference
from coldpress.errors import (
    ColdpressError,
    CorruptModelError,
    InputError,
    UnsupportedModelError,
    UsageError,
)
from coldpress.gptq import GptqOptions, is_auto_gptq, kernel, layout, pack, read, write
from coldpress.gptq.options import BITS

PEER = Path(gptqmodel_peer.__file__).with_name("gptqmodel_inside.py")


def problem(rows: int, inputs: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random weights and the second moment of strongly correlated inputs of very different size."""
    random = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=random) / inputs**0.5
    X = torch.randn(4 * inputs, inputs, generator=random) @ mix
    X *= torch.exp(0.7 * torch.randn(inputs, generator=random))
    return torch.randn(rows, inputs, generator=random) / 20, X.T @ X / len(X)


def slow_grid(w: np.ndarray, importance: np.ndarray, bits: int, search: bool) -> tuple[float, int]:
    """The best scale and zero point of one row's group, one candidate after the other."""
    top, best = 2**bits - 1, (np.inf, 1.0, 1)
    low, high = min(w.min(), 0.0), max(w.max(), 0.0)
    for shrink in np.linspace(1, 0.3, 24) if search else [1.0]:
        scale = float(np.float16((high - low) * shrink / top))
        zero = int(np.clip(np.round(-shrink * low / scale), 1, top))
        q = scale * (np.clip(np.round(w / scale) + zero, 0, top) - zero)
        best = min(best, (float(importance @ (q - w) ** 2), scale, zero))
    return best[1], best[2]


def slow_gptq(
    W: Tensor, H: Tensor, bits: int, group_size: int, act_order: bool, search: bool
) -> np.ndarray:
    """The weights after optimal brain surgery, a column at a time, all in float64.

    After a column is rounded, its row and column are eliminated from the inverse of H (Frantar et al.,
    equations 2 and 3), so that no Cholesky factor is involved.
    """
    H64, W64 = H.double().numpy().copy(), W.double().numpy().copy()
    H64 += 0.01 * np.diag(H64).mean() * np.eye(len(H64))
    order = np.argsort(-np.diag(H64), kind="stable") if act_order else np.arange(len(H64))
    inverses, inverse = {}, np.linalg.inv(H64)
    for i in order:
        inverses[i] = inverse[i] / inverse[i, i], inverse[i, i]
        inverse = inverse - np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    Q = np.empty_like(W64)
    for position, i in enumerate(order):
        if position % group_size == 0:
            group = order[position : position + group_size]
            importance = np.array([1 / inverses[j][1] for j in group])
            grids = [slow_grid(w[group], importance, bits, search) for w in W64]
            scale, zero = (np.array(each) for each in zip(*grids, strict=True))
        Q[:, i] = scale * (np.clip(np.round(W64[:, i] / scale) + zero, 0, 2**bits - 1) - zero)
        W64 -= np.outer(W64[:, i] - Q[:, i], inverses[i][0])
    return Q


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(
    ("bits", "group_size", "inputs", "search"),
    [
        (2, 128, 160, True),
        (3, 32, 160, True),
        (4, 160, 160, False),
        (4, 48, 160, True),
        (8, 224, 160, True),
    ],
)
def test_the_rounding_is_that_of_the_slow_obvious_version(
    bits: int, group_size: int, inputs: int, search: bool, act_order: bool
) -> None:
    W, H = problem(16, inputs)
    rounded = kernel.quantize_matrix(W, H, bits, group_size, act_order, search=search)
    expected = slow_gptq(W, H, bits, group_size, act_order, search)
    assert np.abs(rounded.weights().numpy() - expected).max() < 1e-6
    assert int(rounded.zeros.min()) >= 1
    assert rounded.damp == 0.01


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("W[i + 1 :].addr_(U[i, i + 1 :], error", "W[i + 1 :].addr_(U[i, i:-1], error"),
        ("W[i + 1 :].addr_(U[i, i + 1 :], error", "W[: len(W) - i - 1].addr_(U[i, i + 1 :], error"),
        ("R[:start, start:end].T @ E[:start]", "R[:start, start:end].T @ E[:start].mul(0)"),
        ("R[:start, start:end].T", "R[:start, start - 1 : end - 1].T"),
        ("E[start:end] = W[start:end] -", "E[start:end] = block -"),
    ],
)
def test_a_wrong_slice_in_the_feedback_is_noticed(right: str, wrong: str) -> None:
    source = inspect.getsource(kernel)
    assert source.count(right) == 1
    mutant = ModuleType("mutant")
    exec(source.replace(right, wrong), mutant.__dict__)  # its own source, one slice changed
    W, H = problem(8, 288)
    expected = slow_gptq(W, H, 3, 128, act_order=True, search=True)
    assert np.abs(mutant.quantize_matrix(W, H, 3).weights().numpy() - expected).max() > 0.01


def test_inputs_that_do_not_correlate_leave_plain_rounding() -> None:
    W, H = problem(16, 96)
    rounded = kernel.quantize_matrix(W, H.diagonal().diag(), 4, 32, act_order=False)
    scale, zero = (each.repeat_interleave(32, 0).T for each in (rounded.scales, rounded.zeros))
    plain = (W / scale).round().add(zero).clamp(0, 15)
    assert torch.equal(rounded.codes, plain.to(torch.uint8))


def test_dead_inputs_and_too_little_text_still_round() -> None:
    W, _ = problem(16, 96)
    X = torch.randn(5, 96)
    X[:, :7] = 0
    for H in (X.T @ X, torch.zeros(96, 96)):
        assert kernel.quantize_matrix(W, H, 4, 32).weights().isfinite().all()


def test_a_moment_that_is_not_positive_raises_the_damp_or_is_refused() -> None:
    W, H = problem(16, 96)
    flaw = 0.0005 * H.diagonal().mean() * torch.ones(96, 96)
    assert kernel.quantize_matrix(W, H - flaw, 4, 32).damp == 0.1
    with pytest.raises(InputError):
        kernel.quantize_matrix(W, -H, 4, 32)


def words(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64).to(torch.int32)[:, None]


@pytest.mark.parametrize(
    ("bits", "packed"),
    [
        (2, [0xE4E4E4E4] * 2),
        (3, [0x88FAC688, 0xC688FAC6, 0xFAC688FA]),  # 0xFAC688 is 7 6 5 4 3 2 1 0
        (4, [0x76543210] * 4),
        (8, [0x03020100, 0x07060504] * 4),
    ],
)
def test_codes_fill_words_from_the_lowest_bit(bits: int, packed: list[int]) -> None:
    codes = (torch.arange(32) % min(8, 2**bits)).to(torch.uint8)[:, None]
    assert torch.equal(pack.pack(codes, bits), words(*packed))
    assert torch.equal(pack.unpack(words(*packed), bits), codes)


@given(st.sampled_from(BITS), st.integers(1, 3), st.integers(1, 5), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=50)
def test_unpacking_undoes_packing(bits: int, blocks: int, columns: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(2**bits, (32 * blocks, columns), generator=random, dtype=torch.uint8)
    assert torch.equal(pack.unpack(pack.pack(codes, bits), bits), codes)


def test_zero_points_are_stored_minus_one_in_the_first_format_only() -> None:
    zeros = torch.full((1, 32), 8, dtype=torch.uint8)
    assert pack.pack_zeros(zeros, 4).tolist() == [[0x77777777] * 4]
    assert torch.equal(pack.unpack_zeros(words(*[0x77777777] * 4).T, 4, layout.V1), zeros)
    assert torch.equal(pack.unpack_zeros(words(*[0x77777777] * 4).T, 4, layout.V2), zeros - 1)


def test_a_zero_point_of_zero_has_borrowed_from_its_neighbour() -> None:
    """GPTQModel stores 0x87654320 − 0x11111111 in the first format, one subtraction of the word."""
    stored = words(*[0x87654320 - 0x11111111] * 4).T
    expected = torch.tensor([[0, 2, 3, 4, 5, 6, 7, 8] * 4], dtype=torch.uint8)
    assert torch.equal(pack.unpack_zeros(stored, 4, layout.V1), expected)


def bit_field(words: np.ndarray, index: int, bits: int) -> int:
    """Code ``index`` of a column of words, out of one large integer."""
    return int.from_bytes(words.astype("<i4").tobytes(), "little") >> index * bits & (2**bits - 1)


def random_layer(bits: int, rows: int = 32, inputs: int = 64, groups: int = 3) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(bits)
    word = {"low": -(2**31), "high": 2**31, "dtype": torch.int32, "generator": random}
    return {
        "qweight": torch.randint(size=(inputs * bits // 32, rows), **word),
        "qzeros": torch.randint(size=(groups, rows * bits // 32), **word),
        "scales": torch.rand(groups, rows, generator=random).half(),
        "g_idx": torch.randint(groups, (inputs,), generator=random, dtype=torch.int32),
    }


@pytest.mark.parametrize("bits", BITS)
def test_a_layer_decodes_as_field_by_field(bits: int) -> None:
    layer = random_layer(bits)
    W = pack.dequantize(**layer, bits=bits, checkpoint_format=layout.V2)
    qweight, qzeros, scales, g_idx = (each.numpy() for each in layer.values())
    for o, i in [(0, 0), (31, 63), (10, 10), (21, 21), (11, 42), (5, 31)]:
        group = g_idx[i]
        code = bit_field(qweight[:, o], i, bits)
        zero = bit_field(qzeros[group], o, bits)
        assert W[o, i] == np.float32(scales[group, o]) * (code - zero)


@pytest.fixture(scope="module")
def moments(random_imatrix: Path) -> statistics.Statistics:
    return statistics.read(random_imatrix)


@pytest.fixture(scope="module")
def checkpoints(
    tmp_path_factory: pytest.TempPathFactory, random_llama: Path, moments: statistics.Statistics
) -> dict[int, Path]:
    """``random_llama`` as a GPTQ checkpoint per number of bits."""
    root = tmp_path_factory.mktemp("gptq")
    for bits in BITS:
        options = GptqOptions(bits=bits, group_size=64)
        write.write(random_llama, moments, root / str(bits), options)
    return {bits: root / str(bits) for bits in BITS}


def unpacked(folder: Path, out: Path, outtype: str = "f32") -> dict[str, Tensor]:
    """The tensors of a checkpoint's plain model, which is written to ``out``."""
    out.mkdir()
    found = layout.find(folder, json.loads((folder / "config.json").read_text()))
    assert found is not None
    read.dequantize(folder, found, out, outtype)
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize("bits", BITS)
def test_what_is_written_reads_back_as_what_was_rounded(
    tmp_path: Path,
    random_llama: Path,
    moments: statistics.Statistics,
    checkpoints: dict[int, Path],
    bits: int,
) -> None:
    plain = unpacked(checkpoints[bits], tmp_path / "plain")
    original = load_file(random_llama / "model.safetensors")
    assert plain.keys() == original.keys()
    for name in ("blk.0.attn_k.weight", "blk.1.ffn_down.weight"):
        parameter = moments.places(name)[0].parameter
        H = torch.tensor(moments.hessian(name)[0])
        alone = kernel.quantize_matrix(original[parameter], H, bits, 64)
        assert torch.equal(plain[parameter], alone.weights())
    for name in ("lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"):
        assert torch.equal(plain[name], original[name])
    error = (plain[parameter] - original[parameter]).norm() / original[parameter].norm()
    assert error < 2.0**-bits * 2.5


def test_the_checkpoint_is_what_transformers_looks_for(
    random_llama: Path, checkpoints: dict[int, Path]
) -> None:
    tensors = load_file(checkpoints[3] / "model.safetensors")
    about = json.loads((checkpoints[3] / "config.json").read_text())["quantization_config"]
    layer = "model.layers.1.mlp.down_proj"
    shapes = {name.rpartition(".")[2]: t.shape for name, t in tensors.items() if layer in name}
    assert shapes == {"qweight": (24, 256), "qzeros": (4, 24), "scales": (4, 256), "g_idx": (256,)}
    assert about["quant_method"] == about["checkpoint_format"] == "gptq"
    assert (about["bits"], about["group_size"], about["desc_act"], about["sym"]) == (
        3,
        64,
        True,
        False,
    )
    assert (checkpoints[3] / "tokenizer.model").read_bytes() == (
        random_llama / "tokenizer.model"
    ).read_bytes()


def test_act_order_gives_the_first_group_to_the_largest_inputs(
    moments: statistics.Statistics, checkpoints: dict[int, Path]
) -> None:
    g_idx = load_file(checkpoints[4] / "model.safetensors")["model.layers.0.mlp.down_proj.g_idx"]
    size = moments.hessian("blk.0.ffn_down.weight")[0].diagonal()
    assert size[g_idx == 0].min() >= size[g_idx == 1].max()


@pytest.mark.parametrize("bits", [3, 4])
def test_a_gptq_checkpoint_converts_with_parity(
    tmp_path: Path, checkpoints: dict[int, Path], bits: int
) -> None:
    import gguf

    result = convert(checkpoints[bits], tmp_path / "out", ConvertOptions(outtype="f32"))
    assert result.tokens_agree
    assert result.relative_logit_diff is not None
    assert result.relative_logit_diff < 1e-5
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "manifest.json",
        "model.gguf",
    ]
    written = {
        tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "out/model.gguf").tensors
    }
    plain = unpacked(checkpoints[bits], tmp_path / "plain")
    stored = written["blk.1.ffn_down.weight"].data
    assert np.array_equal(stored, plain["model.layers.1.mlp.down_proj.weight"].numpy())


def test_a_folder_as_auto_gptq_left_it_unpacks(
    tmp_path: Path, checkpoints: dict[int, Path]
) -> None:
    """Its config in a file of its own, biases of zeros, and a name of its own for the weights."""
    model = Path(shutil.copytree(checkpoints[4], tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    about = config.pop("quantization_config")
    (model / "config.json").write_text(json.dumps(config))
    old = {key: about[key] for key in ("bits", "group_size", "desc_act", "sym")}
    (model / "quantize_config.json").write_text(json.dumps(old))
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.bias"] = torch.zeros(256, dtype=torch.float16)
    (model / "model.safetensors").unlink()
    save_file(tensors, model / "gptq_model-4bit-64g.safetensors", {"format": "pt"})
    plain = unpacked(model, tmp_path / "old")
    expected = unpacked(checkpoints[4], tmp_path / "new")
    assert plain.keys() == expected.keys()
    assert all(torch.equal(plain[name], expected[name]) for name in expected)


def damaged(
    checkpoints: dict[int, Path], folder: Path, part: str, tensor: Tensor | None, **about: Any
) -> Path:
    """A copy of the 4-bit checkpoint with one part of one layer replaced, and its config changed."""
    model = Path(shutil.copytree(checkpoints[4], folder / "damaged"))
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] |= about
    (model / "config.json").write_text(json.dumps(config))
    tensors = load_file(model / "model.safetensors")
    name = f"model.layers.0.mlp.up_proj.{part}"
    del tensors[name]
    if tensor is not None:
        tensors[name] = tensor
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    return model


@pytest.mark.parametrize(
    ("part", "tensor", "message"),
    [
        ("qzeros", None, "lacks its qzeros"),
        ("scales", None, "lacks its scales"),
        ("g_idx", torch.full((256,), 4, dtype=torch.int32), "beyond its 4"),
        ("g_idx", torch.full((256,), -1, dtype=torch.int32), "beyond its 4"),
        ("g_idx", torch.zeros(255, dtype=torch.int32), "fit together"),
        ("g_idx", torch.zeros(0, dtype=torch.int32), "fit together"),
        ("qweight", torch.zeros(256, 32, dtype=torch.int32), "AWQ|fit together"),
        ("qweight", torch.zeros(32, 256, dtype=torch.int64), "fit together"),
        ("qweight", torch.zeros(32, dtype=torch.int32), "no matrices"),
        ("qzeros", torch.zeros(4, 31, dtype=torch.int32), "fit together"),
        ("scales", torch.full((4, 256), torch.nan, dtype=torch.float16), "NaN"),
    ],
)
def test_a_damaged_layer_is_named(
    tmp_path: Path, checkpoints: dict[int, Path], part: str, tensor: Tensor | None, message: str
) -> None:
    model = damaged(checkpoints, tmp_path, part, tensor)
    with pytest.raises(CorruptModelError, match=message) as caught:
        unpacked(model, tmp_path / "plain")
    assert "mlp.up_proj" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("about", "error", "message"),
    [
        ({"quant_method": "awq"}, UnsupportedModelError, "AWQ"),
        ({"bits": 5}, UnsupportedModelError, "5 bits"),
        ({"bits": None}, UnsupportedModelError, "None bits"),
        ({"checkpoint_format": "marlin"}, UnsupportedModelError, "marlin"),
        ({"bits": 8}, CorruptModelError, "fit together"),
    ],
)
def test_a_config_of_something_else_is_refused(
    tmp_path: Path,
    checkpoints: dict[int, Path],
    about: dict[str, Any],
    error: type[ColdpressError],
    message: str,
) -> None:
    model = Path(shutil.copytree(checkpoints[4], tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] |= about
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(error, match=message) as caught:
        convert(model, tmp_path / "out", ConvertOptions())
    assert caught.value.hint
    assert not list(tmp_path.glob("out*"))


def test_layers_of_other_bits_are_seen_by_their_shapes(
    tmp_path: Path, checkpoints: dict[int, Path]
) -> None:
    eight = load_file(checkpoints[8] / "model.safetensors")
    model = Path(shutil.copytree(checkpoints[4], tmp_path / "mixed"))
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"]["dynamic"] = {"+:.*up_proj": {"bits": 8}}
    (model / "config.json").write_text(json.dumps(config))
    tensors = load_file(model / "model.safetensors")
    tensors |= {name: tensor for name, tensor in eight.items() if "up_proj" in name}
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    plain = unpacked(model, tmp_path / "plain")
    expected = unpacked(checkpoints[8], tmp_path / "plain8")
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(plain[name], expected[name])


def test_plain_folders_are_left_alone(tmp_path: Path, random_llama: Path) -> None:
    config = json.loads((random_llama / "config.json").read_text())
    assert layout.find(random_llama, config) is None
    assert (
        layout.find(random_llama, config | {"quantization_config": {"quant_method": "fp8"}}) is None
    )
    with layout.plain(random_llama, None, tmp_path / "scratch", "bf16") as folder:
        assert folder == random_llama


def test_a_model_with_a_nan_is_refused(
    tmp_path: Path, random_llama: Path, moments: statistics.Statistics
) -> None:
    model = Path(shutil.copytree(random_llama, tmp_path / "model"))
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = torch.nan
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(CorruptModelError, match=r"layers\.1\.mlp\.up_proj"):
        write.write(model, moments, tmp_path / "out", GptqOptions())


def test_statistics_of_another_model_are_refused(
    tmp_path: Path, tiny_llama: Path, moments: statistics.Statistics
) -> None:
    with pytest.raises(InputError, match="statistics"):
        write.write(tiny_llama, moments, tmp_path / "out", GptqOptions())


@pytest.mark.parametrize("wrong", [{"bits": 5}, {"group_size": 0}, {"damp": 0}, {"damp": 1.5}])
def test_options_that_cannot_work_are_usage_errors(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        GptqOptions(**wrong)


def test_auto_gptq_is_known_by_its_names() -> None:
    assert all(is_auto_gptq(name) for name in ("auto-gptq", "AutoGPTQ", "auto_gptq"))
    assert not is_auto_gptq("gptq")


@pytest.fixture(scope="module")
def peer_python() -> Path:
    python = gptqmodel_peer.interpreter()
    if not python.is_file():
        pytest.skip("gptqmodel is not installed: python benchmarks/gptqmodel_peer.py install")
    return python


def inside_the_peer(python: Path, *arguments: str | Path) -> dict[str, Any]:
    done = subprocess.run(
        [python, PEER, *arguments],
        env=gptqmodel_peer.environment() | {"TORCHDYNAMO_DISABLE": "1"},  # Compiling takes longer.
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


@pytest.mark.slow
def test_transformers_with_gptqmodel_computes_what_we_unpack(
    tmp_path: Path, checkpoints: dict[int, Path], peer_python: Path
) -> None:
    """Every width, the kernel that the peer chooses for this CPU, half precision."""
    folders = [checkpoints[bits] for bits in BITS]
    answer = inside_the_peer(peer_python, "logits", tmp_path, *folders)
    ids = torch.tensor([answer["tokens"]])
    for bits in BITS:
        theirs = torch.from_numpy(np.load(tmp_path / f"{bits}.npy"))
        unpacked(checkpoints[bits], tmp_path / str(bits))
        with torch.inference_mode():
            ours = reference.load_model(tmp_path / str(bits))(ids).logits[0]
        share = (ours - theirs).square().mean().sqrt() / ours.std()
        assert share < 0.01, (bits, answer["kernels"])
