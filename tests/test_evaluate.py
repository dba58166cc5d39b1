"""The evaluate verb: its artifact, its conditions, what it refuses, and its silence."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coldpress import artifact
from coldpress.errors import InputError, PromptTooLongError, UsageError
from coldpress.evaluate import EvaluateOptions, evaluate, page_cache, plan, result, speed
from tests import tiny_models

OPTIONS = EvaluateOptions(
    num_fewshot=1, chunk_tokens=64, n_chunks=3, kl_top_k=32, speed_repeats=1, threads=2
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Four questions in two subjects, and a text."""
    folder = tmp_path_factory.mktemp("data")
    rows = "What is one?,1,2,3,None,A\nWhat is two?,1,2,3,4,B\n"
    for split in ("test", "dev"):
        (folder / "questions" / split).mkdir(parents=True)
        for subject in ("sums", "high_sums"):
            (folder / "questions" / split / f"{subject}_{split}.csv").write_text(rows)
    (folder / "text.txt").write_text(tiny_models.own_text(), encoding="utf-8")
    return {"questions": folder / "questions", "text": folder / "text.txt"}


@pytest.fixture(scope="module")
def base(
    random_gguf: Path, data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("base") / "evaluate"
    evaluate(random_gguf, out, OPTIONS, **data)
    return out


def test_writes_everything_it_was_asked_for(base: Path, random_gguf: Path) -> None:
    read = result.read(base)
    size_bytes = (random_gguf / "model.gguf").stat().st_size
    assert (read.name, read.type, read.method) == ("bf16", "bf16", "base")
    assert read.size_bytes == size_bytes
    assert read.bits_per_weight == pytest.approx(8 * size_bytes / read.n_params)
    assert {scoring: each.n for scoring, each in read.questions.items()} == {
        "continuation": 4,
        "letter": 4,
    }
    assert read.perplexity is not None and read.perplexity.n_tokens == 3 * 31
    assert read.kl is None
    assert read.speed is not None and read.speed.generate_tok_per_s > 0
    samples = [json.loads(line) for line in (base / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 8
    for each in samples:
        assert each["choice"] == max(range(4), key=each["log_likelihoods"].__getitem__)
    assert (base / "kl-base.npz").is_file()
    assert artifact.verify(base).tools["lm-eval"]


def test_compares_with_the_base(
    base: Path, random_gguf: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    from coldpress.quantize import QuantizeOptions, quantize

    quantize(random_gguf, tmp_path / "q", QuantizeOptions(type="Q2_K"))
    done = evaluate(tmp_path / "q", tmp_path / "e", OPTIONS, **data, base=base)
    read = result.read(tmp_path / "e")
    assert (read.name, read.type, read.method) == ("Q2_K", "Q2_K", "plain")
    assert read.kl is not None and done.kl_nats == read.kl.mean > 0
    assert not (tmp_path / "e" / "kl-base.npz").exists()
    assert read.conditions.questions_digest == result.read(base).conditions.questions_digest


def test_equal_inputs_give_equal_figures(
    base: Path, random_gguf: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    evaluate(random_gguf, tmp_path / "e", OPTIONS, **data)
    for name in ("samples.jsonl", "kl-base.npz"):
        assert (tmp_path / "e" / name).read_bytes() == (base / name).read_bytes()


def test_the_plan_is_what_the_manifest_says(
    base: Path, random_gguf: Path, data: dict[str, Path]
) -> None:
    inputs, options = plan(random_gguf, base, OPTIONS, **data)
    assert artifact.is_current(base, "evaluate", inputs, options)
    assert "base" not in inputs
    inputs, _ = plan(random_gguf, base, OPTIONS, **data, base=base)
    assert inputs["base"] == base / "kl-base.npz"


def test_is_silent_and_offline(random_gguf: Path, data: dict[str, Path], tmp_path: Path) -> None:
    """In a fresh process without a network nothing is printed, by any library."""
    program = (
        "import socket, sys\n"
        "def refuse(*_): raise RuntimeError('the network was used')\n"
        "socket.socket.connect = refuse\n"
        "from pathlib import Path\n"
        "from coldpress.evaluate import EvaluateOptions, evaluate\n"
        "gguf, out, questions, text = map(Path, sys.argv[1:])\n"
        "options = EvaluateOptions(num_fewshot=1, chunk_tokens=64, n_chunks=2, speed=False)\n"
        "evaluate(gguf, out, options, questions=questions, text=text)\n"
    )
    argv = [sys.executable, "-W", "error", "-c", program]
    paths = [random_gguf, tmp_path / "e", data["questions"], data["text"]]
    done = subprocess.run([*argv, *map(str, paths)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_speed_is_of_a_process_of_its_own(random_gguf: Path) -> None:
    ballast = bytearray(300 << 20)  # in this process; must not be counted
    found = speed.measure(
        random_gguf / "model.gguf",
        threads=1, profile="fast", n_prompt=32, n_generate=4, repeats=1,
    )  # fmt: skip
    assert 5 < found.peak_rss_mib < len(ballast) / (1 << 20)
    assert 0 < found.load_s < found.ttft_s
    assert found.prompt_tok_per_s > 0
    assert found.grid == ()


def test_speed_of_a_grid_and_of_a_cold_start(random_gguf: Path, tmp_path: Path) -> None:
    """On a copy, which no other process has mapped: its pages can be dropped, unless on tmpfs."""
    file = tmp_path / "model.gguf"
    file.write_bytes((random_gguf / "model.gguf").read_bytes())
    found = speed.measure(
        file, threads=1, profile="fast", n_prompt=8, n_generate=2, repeats=1,
        grid=[(1, 8), (1, 64), (2, 64)],
    )  # fmt: skip
    assert [(each.threads, each.context_tokens) for each in found.grid] == [
        (1, 8),
        (1, 64),
        (2, 64),
    ]
    assert all(min(each.prompt_tok_per_s, each.generate_tok_per_s) > 0 for each in found.grid)
    was_cold = found.cold_cached_share <= 0.01
    assert (found.cold_load_s is not None, found.cold_ttft_s is not None) == (was_cold, was_cold)
    if found.cold_load_s is not None and found.cold_ttft_s is not None:
        assert 0 < found.cold_load_s < found.cold_ttft_s


def test_the_page_cache_forgets_a_file_unless_it_is_mapped(tmp_path: Path) -> None:
    import mmap

    path = tmp_path / "file"
    path.write_bytes(os.urandom(64 * mmap.PAGESIZE + 1))
    assert page_cache.cached_share(path) == 1
    if page_cache.drop(path) == 1:
        pytest.skip("this file system keeps its files in memory")
    assert page_cache.cached_share(path) == 0
    with path.open("rb") as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead
        stream.read(1)
    assert 0 < page_cache.cached_share(path) < 1
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
        assert len(bytes(view)) == 64 * mmap.PAGESIZE + 1  # touched, so mapped
        assert page_cache.drop(path) == 1
    assert page_cache.drop(path) == 0


def test_a_grid_is_measured_only_when_asked_for(
    random_gguf: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Any] = []

    def note(_: Path, **given: Any) -> None:
        asked.append(given["grid"])

    monkeypatch.setattr(speed, "measure", note)
    for i, grid in enumerate(({}, {"speed_threads": (1, 2)}, {"speed_contexts": (16, 32)})):
        evaluate(random_gguf, tmp_path / str(i), EvaluateOptions(threads=2, **grid))
    assert asked == [(), ((1, 512), (2, 512)), ((2, 16), (2, 32))]


@pytest.mark.parametrize(
    "changes",
    [
        {"profile": "slow"},
        {"scoring": ("vibes",)},
        {"num_fewshot": -1},
        {"per_subject": 0},
        {"threads": 0},
        {"speed_threads": (2, 0)},
        {"speed_contexts": (0,)},
        {"chunk_tokens": 4},
    ],
)
def test_impossible_options_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(changes))):
        EvaluateOptions(**changes)


def test_refusals_leave_nothing_behind(
    base: Path, random_gguf: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "e"
    with pytest.raises(PromptTooLongError, match="the context holds 8"):
        evaluate(random_gguf, out, EvaluateOptions(n_ctx=8), **data)
    with pytest.raises(UsageError, match="profile"):
        fast = replace(OPTIONS, profile="fast", scoring=())
        evaluate(random_gguf, out, fast, text=data["text"], base=base)
    with pytest.raises(UsageError, match="other tokens"):
        short = EvaluateOptions(chunk_tokens=32, scoring=())
        evaluate(random_gguf, out, short, text=data["text"], base=base)
    with pytest.raises(InputError, match="not a readable UTF-8 text"):
        evaluate(random_gguf, out, OPTIONS, text=random_gguf / "model.gguf")
    with pytest.raises(InputError, match="does not exist"):
        evaluate(tmp_path / "missing.gguf", out, OPTIONS, **data)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_evaluation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no evaluation"):
        result.read(tmp_path)
    (tmp_path / "evaluation.json").write_text('{"name": 3}')
    with pytest.raises(InputError, match="is not an evaluation"):
        result.read(tmp_path)
