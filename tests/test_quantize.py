"""Quantizing: ggml and llama-quantize are the oracles; the file is as planned, to the byte."""

import ctypes
import json
import subprocess
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coldpress import artifact, libllama
from coldpress.calibrate import imatrix
from coldpress.convert import parity
from coldpress.errors import InputError, UnknownTypeError, UsageError
from coldpress.quantize import QuantizeOptions, encode, measure, plan, quantize, source, write
from coldpress.quantize.layout import predict_size, uniform
from coldpress.quantize.types import PRESETS, TYPES, GgmlType, fitting, resolve

TOKENS = list(range(3, 67))


def logits(path: Path) -> Any:
    with parity.load(path) as model:
        return model.logits(TOKENS)


def decoded(path: Path) -> Path:
    """The same model with every tensor decoded to F32 by the gguf package."""
    reader, out = gguf.GGUFReader(path), path.with_name("decoded.gguf")
    f32 = GgmlType("F32", 0, 1, 4, 0)
    wanted = {tensor.name: f32 for tensor in reader.tensors}

    def decode(tensor: Any, _kind: GgmlType) -> Any:
        rows = source.rows(tensor, 0, tensor.n_elements // int(tensor.shape[0]))
        return np.ascontiguousarray(rows).view(np.uint8)

    write.write(reader, wanted, {}, out, decode)
    return out


def tensors(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def write_source(path: Path, shapes: dict[str, tuple[int, ...]], **pairs: Any) -> Path:
    """A small GGUF of random F32 tensors; shapes as in numpy, row length last."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in pairs.items():
        match value:
            case int() if key == "general.alignment":
                writer.add_custom_alignment(value)
            case str():
                writer.add_string(key, value)
            case list():
                writer.add_array(key, value)
            case float():
                writer.add_float32(key, value)
            case _:
                writer.add_uint32(key, value)
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(name, rng.standard_normal(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_types_table_is_ggmls() -> None:
    for name, kind in TYPES.items():
        ggml = gguf.GGMLQuantizationType[name]
        assert kind.ggml_id == ggml
        assert (kind.block_size, kind.block_bytes) == gguf.GGML_QUANT_SIZES[ggml]


def test_the_presets_are_llama_cpps() -> None:
    for name, preset in PRESETS.items():
        # llama.h names a mix of Q3_K_M and so on; gguf has the same numbers.
        assert gguf.LlamaFileType[f"MOSTLY_{name}"] == preset.file_type


def test_names_are_found_in_any_case_and_misspelt_ones_suggest() -> None:
    assert resolve("q4_k") is TYPES["Q4_K"]
    assert resolve(" iq3_xxs ") is TYPES["IQ3_XXS"]
    assert resolve("q4_k_m") is PRESETS["Q4_K_M"]
    assert resolve("Preset:iq3_xxs") is PRESETS["IQ3_XXS"]
    with pytest.raises(UnknownTypeError) as caught:
        QuantizeOptions(type="Q4_KM")
    assert "Q4_K_M" in caught.value.hint


@pytest.mark.parametrize("name", TYPES)
def test_every_type_is_written_as_ggml_encodes_it_and_runs(
    tmp_path: Path, random_gguf: Path, random_imatrix: Path, name: str
) -> None:
    out = tmp_path / "out"
    result = quantize(
        random_gguf, out, QuantizeOptions(type=name, rounding="imatrix"), calibration=random_imatrix
    )
    artifact.verify(out)
    kind, weights = TYPES[name], imatrix.read(random_imatrix / "imatrix.gguf")
    originals, written = tensors(random_gguf / "model.gguf"), tensors(Path(result.path))
    assert list(originals) == list(written)
    for tensor_name in ("blk.0.attn_q.weight", "blk.1.ffn_down.weight", "token_embd.weight"):
        original = originals[tensor_name]
        W = source.rows(original, 0, int(original.shape[1]))
        importance = weights.importance(tensor_name)
        candidate = encode.encode(W, kind, None if importance is None else importance[0])
        assert written[tensor_name].tensor_type.name == name
        assert candidate.tobytes() == written[tensor_name].data.tobytes()
    assert result.size_bytes == Path(result.path).stat().st_size
    assert result.bits_per_weight == pytest.approx(kind.bits_per_weight, abs=0.05)
    # libllama reads the bytes as the weights that gguf decodes; it rounds activations to 8 bits.
    found = parity.compare([logits(Path(result.path))], [logits(decoded(Path(result.path)))])
    assert found.rms_logit_diff < 0.03 * found.logit_std


def test_errors_fall_as_bits_grow(tmp_path: Path, random_gguf: Path, random_imatrix: Path) -> None:
    errors = []
    for name in ("IQ1_S", "IQ2_XXS", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0"):
        quantize(
            random_gguf,
            tmp_path / name,
            QuantizeOptions(name, rounding="imatrix"),
            calibration=random_imatrix,
        )
        records = json.loads((tmp_path / name / "tensors.json").read_text())["tensors"]
        by_name = {record["name"]: record for record in records}
        assert by_name["blk.0.attn_norm.weight"]["relative_rms_error"] == 0
        assert by_name["blk.0.attn_v.weight"]["weighted"]
        assert not by_name["token_embd.weight"]["weighted"]
        errors.append(by_name["blk.0.attn_v.weight"]["relative_rms_error"])
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize(
    ("name", "file_type", "weighted"),
    [("Q4_K", "Q4_K_S", False), ("Q2_K", "Q2_K", True), ("IQ4_XS", "IQ4_XS", True)],
)
def test_a_uniform_file_has_the_tensors_of_llama_quantize_pure(
    tmp_path: Path,
    random_gguf: Path,
    random_imatrix: Path,
    peers: Path,
    name: str,
    file_type: str,
    weighted: bool,
) -> None:
    weights = random_imatrix if weighted else None
    ours = quantize(
        random_gguf,
        tmp_path / "out",
        QuantizeOptions(name, rounding="imatrix"),
        calibration=weights,
    )
    options = ["--imatrix", random_imatrix / "imatrix.gguf"] if weighted else []
    theirs = tmp_path / "peer.gguf"
    command = [peers / "llama-quantize", "--pure", *options]
    command += [random_gguf / "model.gguf", theirs, file_type]
    subprocess.run(command, check=True, capture_output=True)
    left, right = tensors(Path(ours.path)), tensors(theirs)
    assert left.keys() == right.keys()
    assert all(left[key].data.tobytes() == right[key].data.tobytes() for key in left)


@pytest.mark.parametrize(
    ("name", "weighted"),
    [("Q4_K_M", False), ("q3_k_m", True), ("Q2_K_S", True), ("preset:IQ4_XS", False)],
)
def test_a_preset_has_the_bytes_of_llama_quantize(
    tmp_path: Path,
    random_gguf: Path,
    random_imatrix: Path,
    peers: Path,
    name: str,
    weighted: bool,
) -> None:
    weights = random_imatrix if weighted else None
    ours = quantize(
        random_gguf,
        tmp_path / "out",
        QuantizeOptions(name, rounding="imatrix"),
        calibration=weights,
    )
    options = ["--imatrix", "imatrix.gguf"] if weighted else []
    command = [peers / "llama-quantize", *options, random_gguf / "model.gguf"]
    command += [tmp_path / "peer.gguf", name.removeprefix("preset:").upper()]
    subprocess.run(command, check=True, capture_output=True, cwd=random_imatrix)
    assert Path(ours.path).read_bytes() == (tmp_path / "peer.gguf").read_bytes()


def test_equal_inputs_give_equal_bytes(
    tmp_path: Path, random_gguf: Path, random_imatrix: Path
) -> None:
    manifests = []
    for name in ("a", "b"):
        quantize(
            random_gguf,
            tmp_path / name,
            QuantizeOptions("iq4_xs", rounding="imatrix"),
            calibration=random_imatrix,
        )
        manifests.append(artifact.read(tmp_path / name))
    assert manifests[0] == manifests[1]


def test_metadata_is_kept_and_says_what_was_done(
    tmp_path: Path, random_gguf: Path, random_imatrix: Path
) -> None:
    out = tmp_path / "out"
    quantize(
        random_gguf, out, QuantizeOptions("Q5_K", rounding="imatrix"), calibration=random_imatrix
    )

    def pairs(folder: Path) -> dict[str, Any]:
        fields = gguf.GGUFReader(folder / "model.gguf").fields
        return {
            key: (field.types, field.contents())
            for key, field in fields.items()
            if not key.startswith("GGUF.")
        }

    before, after = pairs(random_gguf), pairs(out)
    changed = {key: value[1] for key, value in after.items() if before.get(key) != value}
    assert changed == {
        "general.file_type": gguf.LlamaFileType.MOSTLY_Q5_K_S,
        "quantize.imatrix.file": "imatrix.gguf",
        "quantize.imatrix.dataset": "text.txt",
        "quantize.imatrix.entries_count": 15,
        "quantize.imatrix.chunks_count": 16,
    }
    assert before.keys() <= after.keys()


def test_rows_that_blocks_do_not_divide_take_another_type_openly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shapes = {"blk.0.ffn_up.weight": (4, 576), "blk.0.ffn_down.weight": (4, 256)}
    path = write_source(tmp_path / "source.gguf", shapes)
    result = quantize(path, tmp_path / "out", QuantizeOptions("Q4_K"))
    records = json.loads((tmp_path / "out" / "tensors.json").read_text())["tensors"]
    assert [(record["type"], record["instead_of"]) for record in records] == [
        ("IQ4_NL", "Q4_K"),
        ("Q4_K", None),
    ]
    assert result.n_fallback == 1
    assert "1 of 2 tensors" in capsys.readouterr().err


def test_rows_that_no_type_fits_are_refused(tmp_path: Path) -> None:
    path = write_source(tmp_path / "source.gguf", {"blk.0.ffn_up.weight": (4, 100)})
    with pytest.raises(UsageError, match="rows of 100"):
        quantize(path, tmp_path / "out", QuantizeOptions("Q4_K"))
    assert not list(tmp_path.glob("out*"))


@given(st.sampled_from(sorted(TYPES)), st.integers(1, 40).map(lambda count: 32 * count))
def test_a_fitting_type_divides_the_rows_and_stores_no_fewer_bits(name: str, length: int) -> None:
    kind = TYPES[name]
    found = fitting(kind, length)
    assert found is not None
    assert length % found.block_size == 0
    assert found.bits_per_weight >= kind.bits_per_weight
    assert (found is kind) == (length % kind.block_size == 0)


@given(
    kinds=st.lists(st.sampled_from([None, "Q8_0", "Q4_0", "Q6_K", "Q2_K"]), min_size=1, max_size=6),
    blocks=st.integers(1, 3),
    text=st.text(max_size=30),
    alignment=st.sampled_from([None, 32, 64, 4096]),
)
@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_the_predicted_size_is_the_files(
    tmp_path: Path, kinds: list[str | None], blocks: int, text: str, alignment: int | None
) -> None:
    shapes = {f"blk.{n}.attn_q.weight": (n + 1, 256 * blocks) for n in range(len(kinds))}
    aligned = {} if alignment is None else {"general.alignment": alignment}
    path = write_source(
        tmp_path / "source.gguf",
        shapes,
        **{"général.x": text, "list": ["a", text, ""], "ints": [1, -2], "general.file_type": 0},
        **aligned,
    )
    reader = source.open_unquantized(path)
    wanted = {name: TYPES[kind] for name, kind in zip(shapes, kinds, strict=True) if kind}
    metadata = {"general.file_type": 7, "new": "é", "quantize.imatrix.file": text}
    out = tmp_path / "out.gguf"
    write.write(
        reader, wanted, metadata, out, lambda each, kind: encode.encode_tensor(each, kind, None)
    )
    assert predict_size(reader, wanted, metadata) == out.stat().st_size
    assert [tensor.tensor_type.name for tensor in gguf.GGUFReader(out).tensors] == [
        kind or "F32" for kind in kinds
    ]


def test_each_expert_has_its_own_importance(tmp_path: Path) -> None:
    path = write_source(tmp_path / "source.gguf", {"blk.0.ffn_up_exps.weight": (3, 8, 256)})
    tensor = source.open_unquantized(path).tensors[0]
    importance = np.random.default_rng(1).random((3, 256), dtype=np.float32)
    together = encode.encode_tensor(tensor, TYPES["Q2_K"], importance)
    apart = [encode.encode(tensor.data[n], TYPES["Q2_K"], importance[n]) for n in range(3)]
    assert together.tobytes() == np.concatenate(apart).tobytes()
    assert measure.relative_error(tensor, tensor, importance) == 0


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=20)
def test_the_error_is_that_of_the_definition(seed: int) -> None:
    from types import SimpleNamespace

    rng = np.random.default_rng(seed)
    x, q = rng.standard_normal((2, 6, 8), dtype=np.float32)
    w = rng.random((2, 8), dtype=np.float32)

    def tensor(values: Any) -> Any:
        kind = gguf.GGMLQuantizationType.F32
        return SimpleNamespace(data=values, tensor_type=kind, shape=np.array([8, 6]), n_elements=48)

    error = sum(w[r // 3, c] * (x[r, c] - q[r, c]) ** 2 for r in range(6) for c in range(8))
    power = sum(w[r // 3, c] * x[r, c] ** 2 for r in range(6) for c in range(8))
    expected = float(np.sqrt(error / power))
    assert measure.relative_error(tensor(x), tensor(q), w) == pytest.approx(expected, rel=1e-5)


def test_slabs_do_not_change_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_source(tmp_path / "source.gguf", {"blk.0.ffn_up.weight": (37, 256)})
    tensor = source.open_unquantized(path).tensors[0]
    whole = encode.encode_tensor(tensor, TYPES["Q4_K"], None)
    monkeypatch.setattr(encode, "_SLAB_WEIGHTS", 3 * 256)
    assert encode.encode_tensor(tensor, TYPES["Q4_K"], None).tobytes() == whole.tobytes()


def test_a_tensor_with_a_nan_is_refused(tmp_path: Path) -> None:
    path = write_source(tmp_path / "source.gguf", {"blk.0.ffn_up.weight": (4, 256)})
    data = bytearray(path.read_bytes())
    data[-4:] = np.float32("nan").tobytes()
    path.write_bytes(data)
    with pytest.raises(InputError, match="NaN"):
        quantize(path, tmp_path / "out", QuantizeOptions("Q4_K"))
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("name", ["IQ2_XXS", "IQ3_XXS", "IQ2_M", "Q2_K_S"])
def test_a_type_that_needs_an_imatrix_says_so(tmp_path: Path, random_gguf: Path, name: str) -> None:
    with pytest.raises(UsageError, match="needs an imatrix"):
        quantize(random_gguf, tmp_path / "out", QuantizeOptions(name))
    assert not list(tmp_path.glob("out*"))


def test_another_models_imatrix_is_refused(tmp_path: Path, random_imatrix: Path) -> None:
    longer = write_source(tmp_path / "a.gguf", {"blk.0.attn_q.weight": (4, 512)})
    deeper = write_source(tmp_path / "b.gguf", {"blk.9.attn_q.weight": (4, 256)})
    for path, message in ((longer, "has 256 inputs"), (deeper, "nothing on blk.9")):
        with pytest.raises(InputError, match=message):
            quantize(
                path,
                tmp_path / "out",
                QuantizeOptions("Q4_K", rounding="imatrix"),
                calibration=random_imatrix,
            )


def test_a_quantized_source_is_refused(tmp_path: Path, random_gguf: Path) -> None:
    quantize(random_gguf, tmp_path / "once", QuantizeOptions("Q8_0"))
    with pytest.raises(InputError, match="already quantized"):
        quantize(tmp_path / "once", tmp_path / "twice", QuantizeOptions("Q4_K"))


def test_what_is_no_whole_gguf_is_refused(tmp_path: Path, random_gguf: Path) -> None:
    data = (random_gguf / "model.gguf").read_bytes()
    for content in (b"", b"GGUF", b"no" * 100, data[:1000], data[: len(data) // 2]):
        (tmp_path / "bad.gguf").write_bytes(content)
        with pytest.raises(InputError):
            quantize(tmp_path / "bad.gguf", tmp_path / "out", QuantizeOptions("Q4_K"))
    with pytest.raises(InputError, match="does not exist"):
        quantize(tmp_path / "none.gguf", tmp_path / "out", QuantizeOptions("Q4_K"))
    part = write_source(
        tmp_path / "p.gguf", {"blk.0.ffn_up.weight": (4, 256)}, **{"split.count": 2}
    )
    with pytest.raises(InputError, match="one part"):
        quantize(part, tmp_path / "out", QuantizeOptions("Q4_K"))


def test_plan_is_what_the_manifest_records(tmp_path: Path, random_gguf: Path) -> None:
    options = QuantizeOptions("q8_0")
    inputs, resolved = plan(random_gguf, tmp_path / "out", options)
    assert not artifact.is_current(tmp_path / "out", "quantize", inputs, resolved)
    quantize(random_gguf, tmp_path / "out", options)
    assert artifact.is_current(tmp_path / "out", "quantize", inputs, resolved)
    other = plan(random_gguf, tmp_path / "out", QuantizeOptions("Q6_K"))
    assert not artifact.is_current(tmp_path / "out", "quantize", *other)


def test_only_matrices_are_quantized(tmp_path: Path) -> None:
    shapes = {
        "token_embd.weight": (8, 256),
        "blk.0.attn_q.weight": (8, 256),
        "blk.0.attn_q.bias": (256,),
        "blk.0.attn_norm.weight": (256,),
        "blk.0.ffn_gate_inp.weight": (8, 256),
    }
    reader = source.open_unquantized(write_source(tmp_path / "source.gguf", shapes))
    assert set(uniform(reader, TYPES["Q4_K"])) == {"token_embd.weight", "blk.0.attn_q.weight"}


def test_ggml_accepts_every_row_that_is_written(random_gguf: Path) -> None:
    ggml = ctypes.CDLL(str(libllama.library_dir() / "libggml-base.so"))
    ggml.ggml_validate_row_data.restype = ctypes.c_bool
    ggml.ggml_validate_row_data.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    tensor = tensors(random_gguf / "model.gguf")["blk.0.ffn_up.weight"]
    for kind in TYPES.values():
        data = encode.encode(source.rows(tensor, 0, 16), kind, np.ones(256, dtype=np.float32))
        assert ggml.ggml_validate_row_data(kind.ggml_id, data.ctypes.data, data.nbytes)
