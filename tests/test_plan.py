"""What is predicted, held against what files and processes then have."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldpress import cost, demo
from coldpress.checkpoint import checkpoint
from coldpress.cli_plan import _per_month
from coldpress.errors import InputError, TooLargeError, UsageError
from coldpress.plan import PlanOptions, estimate, rates, show, source, stage
from coldpress.plan import plan as run
from coldpress.platforms import table
from coldpress.quantize import QuantizeOptions, quantize
from coldpress.quantize.budget import file_bytes
from coldpress.quantize.fit import fit
from coldpress.quantize.source import open_gguf
from coldpress.serve.options import EngineOptions
from tests import tiny_gguf, zero_llama
from tests.runtime_process import resident_mib, running

MIB = 1 << 20
MODEL = {"hidden": 1024, "heads": 16, "feed_forward": 4096, "vocab": 8000}


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of about 100 MB."""
    folder = tmp_path_factory.mktemp("medium")
    checkpoint(zero_llama.write(folder / "model.gguf", **MODEL), folder / "checkpoint")
    return folder / "checkpoint"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("small") / "model.gguf")


@pytest.mark.parametrize("target", ["lambda", "cloudrun"])
def test_memory_is_what_the_runtime_then_takes(medium: Path, target: str) -> None:
    (row,) = run(medium, PlanOptions(targets=(target,))).rows
    parallel = table().targets[target].parallel  # type: ignore[index]
    with running(medium, "--port", "0", "--parallel", str(parallel)) as process:
        url = process.ready_url()
        asked = {"prompt": "hello world " * 40, "max_tokens": 8}
        assert httpx.post(f"{url}/v1/completions", json=asked, timeout=60).status_code == 200
        found = resident_mib(process.process.pid, medium / "model.gguf")
    assert row.resident_mib.value == pytest.approx(found, rel=0.10)
    assert found < row.needed_mib


def test_memory_of_the_demo_model(demo_checkpoint: Path) -> None:
    (row,) = run(demo_checkpoint, PlanOptions(targets=("lambda",))).rows
    with running(demo_checkpoint, "--port", "0", "--parallel", "1") as process:
        url = process.ready_url()
        asked = {"prompt": "hello world " * 40, "max_tokens": 8}
        assert httpx.post(f"{url}/v1/completions", json=asked, timeout=60).status_code == 200
        found = resident_mib(process.process.pid, demo_checkpoint / "model.gguf")
    assert row.resident_mib.value == pytest.approx(found, rel=0.10)


def test_the_size_of_what_is_there_is_exact(medium: Path) -> None:
    (row,) = run(medium, PlanOptions(targets=("compose",))).rows
    files = sum((medium / name).stat().st_size for name in ("model.gguf", "model.index.json"))
    assert (row.size_bytes.value, row.size_bytes.error_pct) == (files, 0)


def test_the_size_of_a_type_is_exact_before_it_is_written(small: Path, tmp_path: Path) -> None:
    options = PlanOptions(bits=("Q8_0", "Q4_0", "5"), targets=("lambda",))
    whole, eight, four, bits = run(small, options).rows
    assert whole.size_bytes.value == small.stat().st_size
    for row in (eight, four):
        made = quantize(small, tmp_path / row.variant, QuantizeOptions(type=row.variant))
        assert Path(made.path).stat().st_size == row.size_bytes.value
        assert row.size_bytes.error_pct == 0
    metadata = {"general.file_type": 0, "general.quantization_version": 2}
    assert bits.size_bytes.value == file_bytes(5, open_gguf(small), metadata)
    assert bits.size_bytes.error_pct > 0


def test_a_hugging_face_folder_is_close_to_its_gguf(demo_gguf: Path) -> None:
    options = PlanOptions(bits=("Q8_0",), targets=("lambda",))
    (folder,) = run(demo.MODEL_DIR, options).rows
    _, converted = run(demo_gguf, options).rows
    assert folder.size_bytes.error_pct >= 2
    assert folder.size_bytes.value == pytest.approx(converted.size_bytes.value, rel=0.02)


def test_a_folder_that_says_too_little_is_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(demo.MODEL_DIR, tmp_path / "model")
    (folder / "tokenizer.json").write_text("[]")
    with pytest.raises(InputError, match="is not a tokenizer"):
        run(folder, PlanOptions())
    config = json.loads((folder / "config.json").read_text())
    del config["hidden_size"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="has no hidden_size"):
        run(folder, PlanOptions())


def test_types_of_a_quantized_file_are_not_guessed(demo_checkpoint: Path) -> None:
    with pytest.raises(InputError, match="already quantized"):
        run(demo_checkpoint, PlanOptions(bits=("Q4_K",)))
    with pytest.raises(InputError, match="does not exist"):
        run(Path("/nowhere"), PlanOptions())


def test_fit_plan_and_package_agree(medium: Path) -> None:
    fields = {n: f.contents() for n, f in open_gguf(medium / "model.gguf").fields.items()}
    for name in ("lambda", "cloudrun", "kserve"):
        (row,) = run(medium, PlanOptions(targets=(name,), memory="2GiB")).rows
        left = fit(f"{name}:2GiB", fields)
        whole = left.memory_bytes - left.beside.needed_bytes
        assert row.needed_mib - row.size_bytes.value / MIB == pytest.approx(
            (left.memory_bytes - whole) / MIB, abs=1
        )


def test_what_does_not_fit_says_what_would(medium: Path, small: Path) -> None:
    options = PlanOptions(targets=("lambda", "cloudrun"), memory="200MB")
    planned = run(medium, options)
    assert all(row.problem and "needs" in row.problem for row in planned.rows)
    with pytest.raises(TooLargeError, match="nothing that was asked for fits"):
        stage.enforce(planned)
    # The platform's image is too small for a file that another platform takes.
    shape, (whole,) = source.variants(medium, ())
    huge = replace(whole, size_bytes=9_990_000_000)
    rows = [
        estimate.row(huge, shape, name, PlanOptions(), rates.default())
        for name in ("lambda", "cloudrun")
    ]
    assert rows[0].problem and "10.05 GB" in rows[0].problem
    advised = stage._advised(rows[0], [rows[1]])
    assert advised.instead == "--target cloudrun"


def test_costs_are_those_of_the_report(medium: Path) -> None:
    (row,) = run(medium, PlanOptions(targets=("cloudrun",), traffic=1000)).rows
    assert row.memory_mib and row.vcpu and row.tok_per_s and row.usd_per_request
    second = (row.memory_mib / 1024 * 2.5e-6) + row.vcpu * 2.4e-5
    expected = 500 / row.tok_per_s.value * second + 4e-7
    assert row.usd_per_request.value == pytest.approx(expected, rel=1e-3)
    assert row.usd_per_month and row.usd_per_month.value == round(1000 * expected, 2)
    assert PlanOptions().request_tokens == cost.REQUEST_TOKENS


def test_every_figure_has_its_confidence(medium: Path) -> None:
    text = "\n".join(show.lines(run(medium, PlanOptions(traffic=10))))
    assert re.search(r"as it is +lambda +95\.\d\d MB  ", text)  # exact: no ±
    assert text.count("±") >= 2 * 5
    assert str(table().date) in text


def test_measured_rates_replace_the_tables(small: Path) -> None:
    types = {"Q8_0", "F32"}
    here = rates.measured(types)
    assert here.machine == "this machine"
    assert here.seconds_per_byte["F32"] == rates.default().seconds_per_byte["F32"]
    assert 1e-12 < here.seconds_per_byte["Q8_0"] < 1e-7


@given(st.floats(0.1, 16), st.floats(1.01, 4), st.floats(1e6, 1e10))
def test_more_vcpu_is_faster_and_more_bytes_slower(vcpu: float, times: float, size: float) -> None:
    table_ = rates.default()
    speed = rates.tok_per_s(table_, {"Q4_K": size}, 0, vcpu)
    assert rates.tok_per_s(table_, {"Q4_K": size}, 0, vcpu * times) > speed
    assert rates.tok_per_s(table_, {"Q4_K": size * times}, 0, vcpu) < speed
    assert rates.tok_per_s(table_, {"Q4_K": size}, 1e9, vcpu) < speed


@given(st.sampled_from(["page-cache", "disk", "network"]), st.integers(0, 10**10))
def test_a_cold_start_is_its_slowest_part(storage: rates.Storage, size: int) -> None:
    table_ = rates.default()
    alone = rates.cold_start_s(table_, storage, 0, 0, 0, 1)
    assert alone == pytest.approx(table_.start_s + table_.first_token_s)
    with_weights = rates.cold_start_s(table_, storage, size, 0, 0, 1)
    assert with_weights - alone == pytest.approx(size / table_.storage_bytes_per_s[storage])
    # A vocabulary is read while the weights come.
    both = rates.cold_start_s(table_, storage, size, 0, 128_000, 1)
    assert both <= with_weights + 128_000 * table_.vocabulary_s_per_token
    assert rates.cold_start_s(table_, storage, size, 0, 128_000, 0.5) > both


def test_the_engine_serves_what_is_planned() -> None:
    """On HTTP the engine has so many sequences; Lambda's environments have one."""
    targets = table().targets
    assert targets["cloudrun"].parallel == EngineOptions().parallel
    assert targets["lambda"].parallel == 1
    for name, limits in targets.items():
        assert limits.sources, name
        assert limits.usual.memory_mib <= limits.most_mib


@pytest.mark.parametrize(
    "options",
    [
        {"targets": ("moon",)},
        {"storage": "tape"},
        {"traffic": 0},
        {"context": -1},
    ],
)
def test_options_are_checked(options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        PlanOptions(**options)  # type: ignore[arg-type]


def test_traffic_is_requests_a_month() -> None:
    assert _per_month("1000/month") == _per_month("1000") == 1000
    assert _per_month(None) is None
    for text in ("many", "10/day", "-1", "1.5"):
        with pytest.raises(UsageError):
            _per_month(text)


def test_json_is_plain(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from coldpress.cli import app

    app(["plan", str(small), "--json", "--target", "compose"], standalone_mode=False)
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["size_bytes"] == {
        "value": small.stat().st_size,
        "error_pct": 0,
        "basis": "the files' size",
    }
