"""The bank and the files made from it: bit for bit what was accepted, resumed where it stopped."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from coldpress.calibrate import statistics
from coldpress.errors import UsageError
from coldpress.quantize import QuantizeOptions, importance, quantize, source, sweep
from coldpress.quantize.bank import Bank
from coldpress.quantize.rounding import compensate, factor
from coldpress.quantize.types import TYPES


def bank(folder: Path, model: Path, calibration: Path) -> Bank:
    reader = source.open_unquantized(source.gguf_path(model))
    weights = importance.read(calibration, reader)
    return Bank(folder, reader, weights, statistics.read(calibration), {"model": "random"})


@pytest.mark.parametrize("name", list(TYPES))
def test_each_written_tensor_decodes_to_the_accepted_candidate(
    tmp_path: Path, random_gguf: Path, random_imatrix: Path, name: str
) -> None:
    options = QuantizeOptions(type=name, rounding="compensated")
    result = quantize(random_gguf, tmp_path / "out", options, calibration=random_imatrix)
    (folder,) = (tmp_path / ".bank").iterdir()
    records = json.loads((tmp_path / "out/tensors.json").read_text())["tensors"]
    written = {tensor.name: tensor for tensor in source.open_gguf(Path(result.path)).tensors}
    compensated = 0
    for record in records:
        if record["rounding"] is None:
            continue
        stored = np.load(folder / f"{record['name']}.{record['type']}.npz")
        tensor = written[record["name"]]
        assert np.array_equal(tensor.data.reshape(stored["data"].shape), stored["data"])
        assert record["held_out_error"] <= record["imatrix_held_out_error"]
        compensated += record["rounding"] == "compensated"
    assert result.n_compensated == compensated > 0


def test_the_lower_error_on_held_out_inputs_is_kept(
    tmp_path: Path, random_gguf: Path, random_imatrix: Path
) -> None:
    made = bank(tmp_path, random_gguf, random_imatrix)
    name, kind = "blk.1.attn_output.weight", TYPES["Q3_K"]
    candidate = made.candidate(name, kind)
    known = statistics.read(random_imatrix)
    reader = source.open_unquantized(source.gguf_path(random_gguf))
    tensor = next(each for each in reader.tensors if each.name == name)
    W = source.rows(tensor, 0, int(tensor.n_elements)).astype(np.float64)
    X = known.held_inputs(name)[0].astype(np.float64)
    Q = gguf.quants.dequantize(candidate.data, gguf.GGMLQuantizationType.Q3_K)
    error = np.square((W - Q) @ X.T).sum() / np.square(W @ X.T).sum()
    assert candidate.rounding == "compensated"
    assert candidate.error == pytest.approx(error, rel=1e-4)
    assert candidate.error < 0.8 * candidate.imatrix_error


def test_feedback_that_does_not_hold_is_not_kept(
    tmp_path: Path, random_gguf: Path, random_imatrix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moments of something else: what they suggest fails on the held-out inputs."""

    def misled(W: np.ndarray, kind: object, its: object) -> object:
        wrong = torch.diag(torch.logspace(-4, 4, W.shape[1])[torch.randperm(W.shape[1])])
        return compensate(W, kind, factor(wrong))  # type: ignore[arg-type]

    monkeypatch.setattr("coldpress.quantize.bank.compensate", misled)
    made = bank(tmp_path, random_gguf, random_imatrix).candidate(
        "blk.0.attn_q.weight", TYPES["Q4_0"]
    )
    assert made.rounding == "imatrix"
    assert made.error == made.imatrix_error


def test_a_candidate_is_made_once(
    tmp_path: Path, random_gguf: Path, random_imatrix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = bank(tmp_path, random_gguf, random_imatrix).candidate(
        "blk.0.attn_q.weight", TYPES["Q4_0"]
    )
    monkeypatch.setattr("coldpress.quantize.bank.encode_tensor", None)
    again = bank(tmp_path, random_gguf, random_imatrix).candidate(
        "blk.0.attn_q.weight", TYPES["Q4_0"]
    )
    assert np.array_equal(first.data, again.data)
    assert (first.error, first.damp) == (again.error, again.damp)


def test_an_interrupted_run_keeps_what_is_finished(
    tmp_path: Path, random_gguf: Path, random_imatrix: Path
) -> None:
    argv = [
        sys.executable,
        "-m",
        "coldpress.cli",
        "quantize",
        str(random_gguf),
        "-o",
        str(tmp_path / "out"),
    ]
    argv += ["--type", "Q2_K", "--calibration", str(random_imatrix)]
    running = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (done := sorted(tmp_path.glob(".bank/*/*.npz"))) and running.poll() is None:
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert done
    assert not (tmp_path / "out").exists()
    before = {path: path.stat().st_mtime_ns for path in done}
    assert subprocess.run(argv, capture_output=True, check=False).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in done} == before
    assert (tmp_path / "out/model.gguf").is_file()


def test_a_preset_keeps_its_types_and_its_size(
    tmp_path: Path, random_gguf: Path, random_imatrix: Path
) -> None:
    sizes, types = [], []
    for rounding in ("imatrix", "compensated"):
        options = QuantizeOptions(type="Q3_K_M", rounding=rounding)  # type: ignore[arg-type]
        out = tmp_path / rounding
        sizes.append(quantize(random_gguf, out, options, calibration=random_imatrix).size_bytes)
        types.append({t.name: t.tensor_type for t in source.open_gguf(out / "model.gguf").tensors})
    assert sizes[0] == sizes[1]
    assert types[0] == types[1]


FEW = {name: TYPES[name] for name in ("Q2_K", "Q3_K", "IQ4_XS", "Q6_K")}


@pytest.mark.parametrize("budget", [{"bpw": 3.7}, {"size": "700KB"}])
def test_a_budget_is_met_and_explained(
    tmp_path: Path,
    random_llama: Path,
    random_gguf: Path,
    random_imatrix: Path,
    budget: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("coldpress.quantize.sensitivity.TYPES", FEW)
    options = QuantizeOptions(probe_tokens=128, tries=2, **budget)
    given = {"calibration": random_imatrix, "model": random_llama}
    result = quantize(random_gguf, tmp_path / "out", options, **given)
    if "size" in budget:
        assert 650_000 < result.size_bytes <= 700_000
    else:
        assert 3.6 < result.bits_per_weight <= 3.7
    assert result.kl_nats is not None
    assert result.kl_nats > 0
    records = json.loads((tmp_path / "out/tensors.json").read_text())["tensors"]
    assert {record["type"] for record in records if record["kl_nats"]} <= set(FEW)
    assert sum(record["kl_nats"] or 0 for record in records) > 0


def test_a_sweep_measures_sensitivities_once(
    tmp_path: Path,
    random_llama: Path,
    random_gguf: Path,
    random_imatrix: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("coldpress.quantize.sensitivity.TYPES", FEW)
    options = QuantizeOptions(probe_tokens=128, tries=0)
    given = {"calibration": random_imatrix, "model": random_llama}
    lines = []
    for folder, each in sweep(tmp_path, options, "3.5,4.5").items():
        quantize(random_gguf, folder, each, **given)
        (ledger,) = tmp_path.glob(".bank/*/kl.jsonl")
        lines.append(len(ledger.read_text().splitlines()))
    assert (tmp_path / "3.5bpw/model.gguf").is_file()
    assert lines[1] - lines[0] == 1  # The second budget measured its own plan and nothing else.
    assert lines[0] > 10


@pytest.mark.parametrize(
    ("options", "given", "message"),
    [
        ({"bpw": 1.0}, ("calibration", "model"), "cannot be met"),
        ({"bpw": 4.0}, ("model",), "needs second moments"),
        ({"bpw": 4.0}, ("calibration",), "on the model itself"),
        ({"type": "Q4_K", "rounding": "compensated"}, (), "needs second moments"),
    ],
)
def test_what_cannot_be_done_says_what_is_missing(
    tmp_path: Path,
    random_llama: Path,
    random_gguf: Path,
    random_imatrix: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    given: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.setattr("coldpress.quantize.sensitivity.TYPES", FEW)
    paths = {"calibration": random_imatrix, "model": random_llama}
    some = {name: paths[name] for name in given}
    with pytest.raises(UsageError, match=message):
        quantize(
            random_gguf,
            tmp_path / "out",
            QuantizeOptions(probe_tokens=64, tries=0, **options),
            **some,
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": "Q4_K", "bpw": 4.0},
        {"bpw": 4.0, "size": "1MB"},
        {"bpw": 99.0},
        {"size": "much"},
        {"rounding": "gptq"},
        {"type": "Q4_K", "min_tok_s": 3.0},
        {"probe_tokens": 0},
    ],
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        QuantizeOptions(**wrong)
