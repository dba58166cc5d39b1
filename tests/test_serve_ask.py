"""The ``ask`` verb: a runtime started cold, one question, the artifact."""

import json
from pathlib import Path

import pytest

from coldpress import artifact
from coldpress.errors import InputError, PromptTooLongError, ToolError, UsageError
from coldpress.serve.ask import AskOptions, ask, plan
from tests import tiny_gguf

OPTIONS = AskOptions("the sea", max_tokens=20, threads=1)


def test_an_answer_is_an_artifact(tmp_path: Path) -> None:
    model = tiny_gguf.write(tmp_path / "model.gguf")
    out = tmp_path / "answer"
    answer = ask(model, out, OPTIONS)
    assert answer.text
    assert (answer.finish_reason, answer.completion_tokens) == ("length", 20)
    trace = answer.trace_s
    assert 0 < trace["first_token_s"] <= answer.cold_start_to_first_token_s + 0.02 < 30
    assert answer.tok_per_s > 0
    assert json.loads((out / "answer.json").read_text()) == {**vars(answer), "path": str(out)}
    artifact.verify(out)
    assert artifact.is_current(out, "serve", *plan(model, out, OPTIONS))
    assert ask(model, out, OPTIONS).text == answer.text


def test_a_model_without_a_template_continues_the_prompt(tmp_path: Path) -> None:
    model = tiny_gguf.write(tmp_path / "model.gguf", template=None)
    assert ask(model, tmp_path / "answer", OPTIONS).completion_tokens == 20


def test_failures_leave_nothing_behind(tmp_path: Path) -> None:
    model = tiny_gguf.write(tmp_path / "model.gguf")
    out = tmp_path / "answer"
    with pytest.raises(PromptTooLongError, match="the prompt has"):
        ask(model, out, AskOptions("x" * 20_000))
    model.write_bytes(model.read_bytes()[:-5000])
    with pytest.raises(ToolError, match="cannot load"):
        ask(model, out, OPTIONS)
    with pytest.raises(InputError):
        ask(tmp_path / "missing", out, OPTIONS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf"]


def test_options_are_checked() -> None:
    with pytest.raises(UsageError):
        AskOptions(" ")
    with pytest.raises(UsageError):
        AskOptions("x", max_tokens=0)
