"""The ``ask`` verb: a runtime started cold, one question, the artifact."""

import json
from pathlib import Path

import pytest

from coldpress import artifact
from coldpress.errors import InputError, PromptTooLongError, ToolError, UsageError
from coldpress.serve import timeline
from coldpress.serve.ask import AskOptions, ask, plan
from tests import loading, tiny_gguf
from tests.range_server import serving

OPTIONS = AskOptions("the sea", max_tokens=400, threads=1)


def test_an_answer_is_an_artifact(tmp_path: Path) -> None:
    model = tiny_gguf.write(tmp_path / "model.gguf")
    out = tmp_path / "answer"
    answer = ask(model, out, OPTIONS)
    assert answer.text
    assert (answer.finish_reason, answer.completion_tokens) == ("length", 400)
    trace = answer.trace_s
    assert 0 < trace["first_token_s"] <= answer.cold_start_to_first_token_s + 0.02 < 30
    assert answer.tok_per_s > 0
    plain = json.loads(json.dumps(vars(answer)))
    assert json.loads((out / "answer.json").read_text()) == {**plain, "path": str(out)}
    assert list(answer.timeline) == ["import", "load", "context", "first_token"]
    artifact.verify(out)
    assert artifact.is_current(out, "serve", *plan(model, out, OPTIONS))
    assert ask(model, out, OPTIONS).text == answer.text


def test_an_address_is_asked_like_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLDPRESS_CACHE_BYTES", "0")
    folder = loading.made(tmp_path / "checkpoint")
    here = ask(folder, tmp_path / "here", OPTIONS)
    with serving(folder) as (address, _):
        there = ask(f"{address}/?signature=secret", tmp_path / "there", OPTIONS)
    assert there.text == here.text
    assert {"fetch", "verify"} <= set(there.timeline)
    recorded = "".join(path.read_text() for path in (tmp_path / "there").iterdir())
    assert "secret" not in recorded
    assert address in recorded


def test_a_timeline_is_drawn() -> None:
    spans = {"import": (0.0, 0.5), "fetch": (0.25, 1.0), "context": (0.999, 1.0)}
    assert timeline.draw(spans).splitlines() == [
        f"  import  |{'█' * 24}{' ' * 24}|   0.00 – 0.50 s",
        f"  fetch   |{' ' * 12}{'█' * 36}|   0.25 – 1.00 s",
        f"  context |{' ' * 47}█|   1.00 – 1.00 s",
    ]
    assert timeline.draw({}) == ""


def test_a_model_without_a_template_continues_the_prompt(tmp_path: Path) -> None:
    model = tiny_gguf.write(tmp_path / "model.gguf", template=None)
    assert ask(model, tmp_path / "answer", OPTIONS).completion_tokens == 400


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
