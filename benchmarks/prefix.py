"""First token under a system prompt of a thousand tokens, with its KV state shipped: ``reports/prefix.json``.

``python -m benchmarks.prefix`` serves random weights of Llama-3.2-1B's dimensions at Q4_K three ways: without
a system prompt, with one that is read again, and with one whose state is shipped. Each is started cold (as a
process; the file is in the page cache) and asked once, then asked again while it runs; the ways take turns.
The answers with and without the state must be the same.
"""

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import serve_models
from coldpress import demo
from coldpress.package import prefix as build
from coldpress.serve.cold_runtime import ColdRuntime, post, started

REPORT = Path(__file__).resolve().parents[1] / "reports/prefix.json"
TOKENS = 1000
_ANSWER_TOKENS = 8
_TEMPLATE = "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}<|assistant|>"
_ASKED = {"role": "user", "content": "hi"}


def measure(model: Path, scratch: Path, *, rounds: int = 5) -> dict[str, Any]:
    """Seconds to the first token, cold and running, of the three ways, and their ratios.

    Args:
        model: a checkpoint; it is copied and given a chat template.
    """
    bare = serve_models.with_template(model, _TEMPLATE, scratch / "bare")
    shipped = scratch / "shipped"
    shutil.copytree(bare, shipped, copy_function=os.link)
    text = _system_prompt(bare)
    began = time.perf_counter()
    built = build.build(shipped / "model.gguf", text, shipped)
    build_s = time.perf_counter() - began
    system = {"role": "system", "content": text}
    ways = {
        "empty": (bare, [_ASKED]),
        "recomputed": (bare, [system, _ASKED]),
        "prefix": (shipped, [_ASKED]),
    }
    taken: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, (folder, messages) in ways.items():
            taken[way].append(_ask(folder, messages))
    answers = {way: {one["text"] for one in found} for way, found in taken.items()}
    figures = {
        way: {key: _spread([one[key] for one in found]) for key in ("cold_s", "running_s")}
        for way, found in taken.items()
    }
    return {
        "headline": {
            "prefix_first_token_ratio": _ratio(figures, "cold_s", "prefix", "empty"),
        },
        "ratios": {
            f"{key}: {of} / {to}": _ratio(figures, key, of, to)
            for key in ("cold_s", "running_s")
            for of, to in (("prefix", "empty"), ("prefix", "recomputed"))
        },
        "first_token": figures,
        "prompt_tokens": {way: found[0]["prompt_tokens"] for way, found in taken.items()},
        "same_answers": answers["prefix"] == answers["recomputed"] and len(answers["prefix"]) == 1,
        "state": {"n_tokens": built.n_tokens, "size_bytes": built.size_bytes, "build_s": build_s},
    }


def _system_prompt(folder: Path) -> str:
    """Prose of ``TOKENS`` tokens of this model's."""
    from coldpress.serve.load.mapping import load

    model = load([folder / "model.gguf"], "the benchmark's model")
    text = demo.HELDOUT_TEXT.read_text(encoding="utf-8")
    low, high = 0, len(text)
    while low < high:
        middle = (low + high) // 2
        if len(model.tokenize(text[:middle], add_special=False, parse_special=False)) < TOKENS:
            low = middle + 1
        else:
            high = middle
    return text[:low].strip()


def _ask(folder: Path, messages: list[dict[str, str]]) -> dict[str, Any]:
    """Start a runtime, ask it, and ask it again as it runs."""
    arguments = ["--parallel", "1", "--context", "2048"]
    with started(folder, arguments) as runtime:
        port = runtime.event("listening")["port"]
        first_s, text, tokens = _answer(runtime, port, messages)
        cold_s = first_s - runtime.started_s
        began_s = time.monotonic()
        again_s, _, _ = _answer(runtime, port, messages)
    return {
        "cold_s": cold_s,
        "running_s": again_s - began_s,
        "text": text,
        "prompt_tokens": tokens,
    }


def _answer(
    runtime: ColdRuntime, port: int, messages: list[dict[str, str]]
) -> tuple[float, str, int]:
    """When the first text came, on ``time.monotonic``'s clock; all of it; the prompt's tokens."""
    body = {
        "messages": messages,
        "max_tokens": _ANSWER_TOKENS,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    first_s, text, tokens = 0.0, "", 0
    with post(runtime, port, "/v1/chat/completions", body) as response:
        for chunk in _chunks(response):
            tokens = (chunk.get("usage") or {}).get("prompt_tokens", tokens)
            for choice in chunk["choices"]:
                if choice["delta"].get("content") or choice["finish_reason"]:
                    first_s = first_s or time.monotonic()
                text += choice["delta"].get("content") or ""
    return first_s, text, tokens


def _chunks(lines: Any) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.startswith(b"data: {"):
            yield json.loads(line.removeprefix(b"data: "))


def _spread(seconds: list[float]) -> dict[str, Any]:
    return {
        "median": round(median(seconds), 4),
        "min": round(min(seconds), 4),
        "max": round(max(seconds), 4),
        "n": len(seconds),
    }


def _ratio(figures: dict[str, Any], key: str, of: str, to: str) -> float:
    return round(figures[of][key]["median"] / figures[to][key]["median"], 3)


def main() -> None:
    """Measure and write the report."""
    from benchmarks import load_model
    from benchmarks.conditions import conditions

    model = load_model.checkpoint()
    with tempfile.TemporaryDirectory(dir=load_model.FOLDER) as scratch:
        report = measure(model, Path(scratch))
    report |= {
        "conditions": conditions("python -m benchmarks.prefix"),
        "model": "random weights of Llama-3.2-1B's dimensions, Q4_K_M's types",
    }
    with contextlib.suppress(FileNotFoundError):
        REPORT.unlink()
    REPORT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report["headline"] | report["ratios"], indent=1))


if __name__ == "__main__":
    main()
