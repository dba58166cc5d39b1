"""Speculative decoding by prompt lookup: tok/s with and without, on three kinds of prompt, the text the same."""

import sys
from statistics import median
from typing import Any

from benchmarks import serve_models
from benchmarks.serve_client import Answer, RefusedError, ask, body, until_answered
from benchmarks.serve_servers import ours, running
from coldpress import demo

_ANSWER, _CONTEXT = 128, 2048
_TEXT_CHARACTERS = 900
_ROWS = "\n".join(
    f'  {{"id": {n}, "name": "user{n}", "active": true, "tags": ["a", "b"]}},' for n in range(1, 8)
)


def prompts(name: serve_models.Name) -> dict[str, str]:
    """A text to be said again, JSON that repeats itself, and prose to be gone on with."""
    text = demo.HELDOUT_TEXT.read_text(encoding="utf-8")[:_TEXT_CHARACTERS]
    return {
        "copy": f"{text}\n\n{text[: _TEXT_CHARACTERS // 5]}",
        "json": f"[\n{_ROWS}\n",
        "free": serve_models.prompts(name, 60, [1])[0],
    }


def compare(name: serve_models.Name, rounds: int) -> dict[str, Any] | None:
    """Rates with and without for each kind of prompt; None: the server knows no speculation.

    Raises:
        SystemExit: an answer is another with speculation than without.
    """
    command = ours(serve_models.gguf(name), 1, _CONTEXT)
    bias = serve_models.end_bias(name)
    with running(command) as process:
        until_answered(command.port, body("a", 1, bias), process)
        if not _knows(command.port, bias):
            return None
        found: dict[str, Any] = {}
        for kind, prompt in prompts(name).items():
            asked = body(prompt, _ANSWER, bias)
            rates: dict[str, list[float]] = {"off": [], "lookup": []}
            for turn in range(rounds + 1):
                answers = {way: ask(command.port, {**asked, "speculative": way}) for way in rates}
                if answers["off"].text != answers["lookup"].text:
                    raise SystemExit(f"{name}, {kind}: another answer with speculation")
                for way, answer in answers.items():
                    if turn:  # the first is a warm-up
                        rates[way].append(_tok_s(answer))
            each = [fast / slow for fast, slow in zip(rates["lookup"], rates["off"], strict=True)]
            found[kind] = {"tok_s": rates, "ratio": median(each), "text": answers["off"].text}
            print(f"speculation {name} {kind}: {median(each):.2f}", file=sys.stderr)
    return found


def _knows(port: int, bias: dict[str, int]) -> bool:
    """Whether the field is read at all: unknown fields are ignored, a known one's nonsense is refused."""
    try:
        ask(port, {**body("a", 1, bias), "speculative": "nonsense"})
    except RefusedError as refused:
        return refused.status == 400
    return False


def _tok_s(answer: Answer) -> float:
    if answer.tokens != _ANSWER:
        raise SystemExit(f"{answer.tokens} tokens instead of {_ANSWER}")
    return (_ANSWER - 1) / (answer.end_s - answer.first_s)
