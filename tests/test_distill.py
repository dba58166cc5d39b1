"""Distillation: learns, resumes exactly, on one process or two, and says what it cannot do."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coldpress import demo
from coldpress.convert import ConvertOptions, convert, reference
from coldpress.demo import training_text
from coldpress.distill import DistillOptions, distill, documents, lessons, train
from coldpress.distill.loss import target
from coldpress.errors import ColdpressError, InputError, TrainingError, UsageError
from coldpress.prune import depth
from tests import tiny_models

ROOT = Path(__file__).resolve().parents[1]
SMALL = DistillOptions(
    tokens="12k", context=32, batch_tokens=512, evaluate_every=6, rate=5e-4, precision="float32"
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of three blocks."""
    folder = tmp_path_factory.mktemp("teacher")
    tiny_models.sentencepiece(folder)
    return tiny_models.save(folder, "llama", scale=1, num_hidden_layers=3, intermediate_size=256)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(tiny_models.own_text(), encoding="utf-8")
    return path


def curve(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((out / "curve.json").read_text())["history"]
    return found


def assert_same(ours: Path, theirs: Path, rel: float) -> None:
    """Two runs' curves, within a share of each figure."""
    found, wanted = curve(ours), curve(theirs)
    assert len(found) == len(wanted) > 1
    for here, there in zip(found, wanted, strict=True):
        assert (here["step"], here["tokens"]) == (there["step"], there["tokens"])
        assert here["held_kl_nats"] == pytest.approx(there["held_kl_nats"], rel=rel)
        if there["step"] > 0:
            assert here["train_kl_nats"] == pytest.approx(there["train_kl_nats"], rel=rel)


def test_a_student_learns_and_is_a_model(teacher: Path, text: Path, tmp_path: Path) -> None:
    done = distill(teacher, tmp_path / "out", replace(SMALL, layers=2), text=text)
    assert done.kl_after_nats < 0.7 * done.kl_before_nats
    history = curve(tmp_path / "out")
    assert [each["step"] for each in history] == [0, 6, 12, 18, 23]
    assert done.kl_after_nats == min(each["held_kl_nats"] for each in history)
    assert (tmp_path / "out" / "curve.svg").read_text().startswith("<?xml")
    assert not list((tmp_path / ".distill").iterdir())  # Nothing to go on from is left.
    student = reference.load_model(tmp_path / "out")
    assert student.config.num_hidden_layers == 2
    assert next(iter(student.parameters())).isfinite().all()
    # The figure is of the weights that were written, but for their rounding to bf16.
    whole = reference.load_model(teacher)
    tokens = lessons.windows(
        reference.load_tokenizer(teacher), documents.read(text), SMALL.context, 12_000
    )
    ids = torch.from_numpy(tokens[list(lessons.held_out(tokens))].astype(np.int64))
    with torch.inference_mode():
        said = target(whole(ids).logits, 1.0, 64)
        found = train.divergence(student(ids).logits, said, "forward", 1.0).mean()
    assert float(found) == pytest.approx(done.kl_after_nats, rel=0.05)
    converted = convert(tmp_path / "out", tmp_path / "gguf", ConvertOptions())
    assert converted.relative_logit_diff is not None


def test_what_is_zero_stays_zero(teacher: Path, text: Path, tmp_path: Path) -> None:
    """A dropped neuron or attention, written as zeros, does not come back while it is trained."""
    model = reference.load_model(teacher)
    layer = model.model.layers[1]
    with torch.no_grad():
        layer.mlp.gate_proj.weight[::2] = 0
        layer.mlp.up_proj.weight[::2] = 0
        layer.mlp.down_proj.weight[:, ::2] = 0
        layer.self_attn.v_proj.weight.zero_()
        layer.self_attn.o_proj.weight.zero_()
    student = tmp_path / "student"
    model.save_pretrained(student)
    tiny_models.sentencepiece(student)
    options = replace(SMALL, weight_decay=0.1)
    distill(teacher, tmp_path / "out", options, student=student, text=text)
    layer = reference.load_model(tmp_path / "out").model.layers[1]
    assert not layer.mlp.gate_proj.weight[::2].any()
    assert not layer.mlp.up_proj.weight[::2].any()
    assert not layer.mlp.down_proj.weight[:, ::2].any()
    assert layer.mlp.down_proj.weight[:, 1::2].any()
    assert not layer.self_attn.v_proj.weight.any()
    assert not layer.self_attn.o_proj.weight.any()


def command(teacher: Path, out: Path, text: Path, *more: str) -> list[str]:
    options = (
        "--layers 2 --tokens 24k --context 32 --batch-tokens 512 --evaluate-every 4 --rate 5e-4"
    )
    given = ["distill", str(teacher), "-o", str(out), "--text", str(text), "--patience", "0"]
    return [*given, *options.split(), "--precision", "float32", *more]


def test_killed_and_gone_on_with(teacher: Path, text: Path, tmp_path: Path) -> None:
    """``kill -9`` in the middle, then the same command: the curve of a run that nothing stopped."""
    whole = command(teacher, tmp_path / "whole" / "out", text)
    subprocess.run([sys.executable, "-m", "coldpress.cli", *whole], check=True, cwd=ROOT)
    argv = [
        sys.executable,
        "-m",
        "coldpress.cli",
        *command(teacher, tmp_path / "cut" / "out", text),
    ]
    process = subprocess.Popen(argv, cwd=ROOT)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("cut/.distill/*/step-*")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut" / "out").exists()
    (state,) = tmp_path.glob("cut/.distill/*/step-*")
    assert 0 < json.loads((state / "state.json").read_text())["step"] < 46
    subprocess.run(argv, check=True, cwd=ROOT)
    assert_same(tmp_path / "cut" / "out", tmp_path / "whole" / "out", 1e-4)


def test_two_processes_are_one(teacher: Path, text: Path, tmp_path: Path) -> None:
    """torchrun on this machine: each process trains on half of every step's windows."""
    one = command(teacher, tmp_path / "one" / "out", text, "--accumulate", "2")
    subprocess.run([sys.executable, "-m", "coldpress.cli", *one], check=True, cwd=ROOT)
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    run += ["--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    two = [*run, "--module", "coldpress.cli", *command(teacher, tmp_path / "two" / "out", text)]
    done = subprocess.run(
        [*two, "--json"],
        check=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert json.loads(done.stdout)["steps"] == 46  # One line: the others print nothing.
    assert_same(tmp_path / "two" / "out", tmp_path / "one" / "out", 2e-3)


def test_a_loss_that_is_no_number_names_the_last_good_state(
    teacher: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = train._loss

    def spoiled(run: Any, model: Any, rows: Any) -> torch.Tensor:
        loss = exact(run, model, rows)
        return loss * torch.nan if next(spoil) == 8 else loss

    spoil = iter(range(100))
    monkeypatch.setattr(train, "_loss", spoiled)
    with pytest.raises(TrainingError, match=r"nan at step 9; the last good state is .*step-0*6\b"):
        distill(teacher, tmp_path / "out", replace(SMALL, layers=2), text=text)
    assert not (tmp_path / "out").exists()
    (state,) = tmp_path.glob(".distill/*/step-*")
    assert reference.load_model(state).config.num_hidden_layers == 2  # A model to go on with.


def test_a_wild_rate_ends_in_words(teacher: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"no good state yet|last good state"):
        distill(teacher, tmp_path / "out", replace(SMALL, layers=2, rate=1e30), text=text)


def test_training_ends_when_held_out_text_gains_nothing(
    teacher: Path, text: Path, tmp_path: Path
) -> None:
    options = replace(SMALL, layers=2, rate=3.0, patience=1, evaluate_every=2)
    done = distill(teacher, tmp_path / "out", options, text=text)
    assert done.steps < options.steps
    assert done.kl_after_nats <= done.kl_before_nats


@pytest.mark.parametrize(
    "change",
    [
        {"accumulate": 4},
        {"checkpointing": True},
        {"top_k": 511},
        {"top_k": 0},
        {"cache": "1kB"},
    ],
    ids=str,
)
def test_ways_of_computing_the_same(
    teacher: Path, text: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    """Whether answers are kept for all tokens or asked for, and how a step is cut up, changes only rounding."""
    wide = replace(SMALL, layers=2, tokens="6k", top_k=511)
    distill(teacher, tmp_path / "a" / "out", wide, text=text)
    distill(teacher, tmp_path / "b" / "out", replace(wide, **change), text=text)
    assert_same(tmp_path / "b" / "out", tmp_path / "a" / "out", 5e-3)


def test_hidden_states_are_taught_too(teacher: Path, text: Path, tmp_path: Path) -> None:
    options = replace(SMALL, layers=2, tokens="6k")
    distill(teacher, tmp_path / "a" / "out", options, text=text)
    distill(teacher, tmp_path / "b" / "out", replace(options, hidden_weight=3.0), text=text)
    whole = reference.load_model(teacher)
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, 512, (4, 32)))

    def error(folder: Path) -> float:
        with torch.inference_mode():
            states = [
                each(ids, output_hidden_states=True).hidden_states[-1]
                for each in (whole, reference.load_model(folder))
            ]
        return float((states[0] - states[1]).square().mean())

    assert error(tmp_path / "b" / "out") < 0.9 * error(tmp_path / "a" / "out")


def test_a_pruned_demo_model_learns_back(tmp_path: Path) -> None:
    model = reference.load_model(demo.MODEL_DIR)
    depth.keep(model, [0, 2, 5, 7])
    student = tmp_path / "student"
    model.save_pretrained(student)
    for path in demo.MODEL_DIR.glob("*token*"):
        (student / path.name).write_bytes(path.read_bytes())
    lines = tmp_path / "text.jsonl"
    training_text.write(lines, 3000)
    options = DistillOptions(tokens="60k", batch_tokens=2048)
    done = distill(
        demo.MODEL_DIR,
        tmp_path / "out",
        options,
        student=student,
        text=lines,
        against=[demo.HELDOUT_TEXT],
    )
    assert done.kl_after_nats < 0.5 * done.kl_before_nats


def test_answers_are_the_teachers_and_go_on(
    teacher: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = reference.load_model(teacher)
    tokens = lessons.windows(reference.load_tokenizer(teacher), documents.read(text), 32, 6_000)
    monkeypatch.setattr(lessons, "_BATCH_TOKENS", 64)
    lessons.answer(tmp_path / "whole", model, tokens, 1.0, 5)
    calls = iter(range(1000))

    def dies(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == 20:
            raise KeyboardInterrupt
        return model(*args, **kwargs)

    dies.config = model.config  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        lessons.answer(tmp_path / "cut", dies, tokens, 1.0, 5)
    assert not lessons.is_answered(tmp_path / "cut")
    lessons.answer(tmp_path / "cut", dies, tokens, 1.0, 5)
    assert lessons.is_answered(tmp_path / "cut")
    assert (
        next(calls) < 20 + 2 + len(tokens) // 2 - 20 + 2
    )  # What was answered was not asked again.
    for name in ("tokens.npy", "ids.npy", "log_p.npy"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    read = lessons.read(tmp_path / "whole", 1.0)
    _, said = read.ask([3, 7])
    with torch.inference_mode():
        logits = model(torch.from_numpy(tokens[[3, 7]].astype(np.int64))).logits
    wanted = target(logits, 1.0, 5)
    assert said.ids is not None
    assert wanted.ids is not None
    assert torch.equal(said.ids, wanted.ids)
    assert torch.allclose(said.log_p.float(), wanted.log_p, rtol=2e-3, atol=1e-3)
    size = sum((tmp_path / "whole" / each).stat().st_size for each in ("ids.npy", "log_p.npy"))
    assert size - 2 * 128 == lessons.kept_bytes(tokens.size, 512, 5)


def test_every_pass_takes_each_window_once() -> None:
    windows = np.arange(10, 33, dtype=np.int32)
    taken = np.concatenate([train.batch(windows, 7, 5, step) for step in range(23)])
    for start in range(0, len(taken), len(windows)):
        assert sorted(taken[start : start + len(windows)]) == windows.tolist()
    assert not np.array_equal(taken[:23], taken[23:46])
    assert np.array_equal(train.batch(windows, 7, 5, 3), taken[21:28])


def test_windows_are_documents_one_after_the_other(teacher: Path) -> None:
    tokenizer = reference.load_tokenizer(teacher)
    found = lessons.windows(tokenizer, ["one two", "three"] * 40, 4, 10**6)
    wanted: list[int] = []
    for document in ["one two", "three"] * 40:
        wanted += [*tokenizer(document)["input_ids"], tokenizer.eos_token_id]
    assert found.flatten().tolist() == wanted[: found.size]
    assert found.size > len(wanted) - 4
    assert wanted[0] == tokenizer.bos_token_id


def test_documents_come_from_files_folders_and_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("first\n\nstill", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"text": "second"}\n{"text": "third"}\n', encoding="utf-8")
    (tmp_path / "c.md").write_text("not read", encoding="utf-8")
    assert list(documents.read(tmp_path)) == ["first\n\nstill", "second", "third"]
    assert list(documents.read(tmp_path / "b.jsonl")) == ["second", "third"]


def test_the_demos_lessons_are_the_same_every_time_and_untested(tmp_path: Path) -> None:
    for name in ("a", "b"):
        training_text.write(tmp_path / name, 200)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    held = {
        line.split(",")[0] for line in (demo.HELDOUT_TEXT).read_text().splitlines() if "?" in line
    }
    said = "\n".join(documents.read(training_text.training_text()))
    assert sum(each in said for each in held) < 0.02 * len(held)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.jsonl", b"{", "line 1, is not JSON"),
        ("x.jsonl", b'{"txt": "a"}', "has no `text`"),
        ("x.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("folder/x.md", b"a", "no .txt or .jsonl"),
    ],
)
def test_text_that_is_none_is_named(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(InputError, match=words):
        list(documents.read(path.parent if "/" in name else path))
    with pytest.raises(InputError, match="does not exist"):
        documents.read(tmp_path / "nothing.txt")


@pytest.mark.parametrize(
    ("change", "given", "kind", "words"),
    [
        ({}, {}, UsageError, "student, or a number"),
        ({"layers": 2}, {"student": "teacher"}, UsageError, "not both"),
        ({"layers": 9}, {}, UsageError, "9 of 3 blocks"),
        ({}, {"student": "demo"}, UsageError, "another tokenizer"),
        ({"layers": 2}, {"against": True}, InputError, "share"),
        (
            {"layers": 2, "context": 256, "tokens": "200k"},
            {"short": True},
            InputError,
            "fewer than",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    teacher: Path,
    text: Path,
    tmp_path: Path,
    change: dict[str, Any],
    given: dict[str, Any],
    kind: type[ColdpressError],
    words: str,
) -> None:
    student = {"teacher": teacher, "demo": demo.MODEL_DIR}.get(given.get("student", ""))
    source = text
    if given.get("short"):
        source = tmp_path / "short.txt"
        source.write_text("short", encoding="utf-8")
    against = [text] if given.get("against") else []
    with pytest.raises(kind, match=words):
        distill(
            teacher,
            tmp_path / "out",
            replace(SMALL, **change),
            student=student,
            text=source,
            against=against,
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": "100"},
        {"loss": "l2"},
        {"precision": "fp8"},
        {"accumulate": 3},
        {"temperature": 0.0},
        {"rate": -1.0},
        {"cache": "much"},
        {"tokens": "many"},
    ],
    ids=str,
)
def test_options_that_cannot_work(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        replace(SMALL, **change)
