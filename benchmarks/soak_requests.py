"""What the soak's clients ask: a pool of requests with fixed seeds, and bodies that must be refused."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from benchmarks import serve_models

TEMPLATE = (
    "{{ bos_token }}{% if tools %}<tool_call> {{ tools | tojson }} </tool_call>\n{% endif %}"
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
"""The demo model's own, with a place for tools: it was never taught any."""
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
CONTEXT = 1024
Kind = Literal["short", "chat", "long", "schema", "tools", "logprobs"]
_SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "people": {"type": "integer"}},
    "required": ["city", "people"],
}
_TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look a word up.",
        "parameters": {"type": "object", "properties": {"word": {"type": "string"}}},
    },
}


@dataclass(frozen=True, eq=False)
class Case:
    """One request; every answer to it must be the same."""

    number: int
    kind: Kind
    path: str
    body: dict[str, Any]


@dataclass(frozen=True)
class Malformed:
    """A request that must be refused with ``status``."""

    what: str
    status: int
    body: bytes
    method: str = "POST"
    path: str = CHAT
    key: bool = True


def pool() -> list[Case]:
    """Sixty requests: every kind at several temperatures, each with a seed of its own."""
    wanted: dict[Kind, int] = {
        "short": 18,
        "chat": 14,
        "long": 10,
        "schema": 8,
        "tools": 6,
        "logprobs": 4,
    }
    found: list[Case] = []
    for kind, count in wanted.items():
        for path, body in islice(_bodies(kind), count):
            number = len(found)
            drawn = {"temperature": (0, 0.7, 1.3)[number % 3], "seed": 1000 + number}
            found.append(Case(number, kind, path, {**drawn, **body}))
    return found


def _bodies(kind: Kind) -> Iterator[tuple[str, dict[str, Any]]]:
    length = 300 if kind == "long" else 30
    for number, prompt in enumerate(serve_models.prompts("demo", length, range(200))):
        asked = {"messages": [{"role": "user", "content": prompt}]}
        match kind:
            case "short":
                yield COMPLETION, {"prompt": prompt, "max_tokens": 6 + number}
            case "chat":
                style = {"stop": ["\n\n"]} if number % 2 else {"repeat_penalty": 1.2, "top_k": 0}
                yield CHAT, {**asked, **style, "max_tokens": 80}
            case "long":
                bias = serve_models.end_bias("demo")
                yield COMPLETION, {"prompt": prompt, "max_tokens": 400, "logit_bias": bias}
            case "schema":
                form = {"type": "json_schema", "json_schema": {"name": "city", "schema": _SCHEMA}}
                yield CHAT, {**asked, "response_format": form, "max_tokens": 60}
            case "tools":
                yield CHAT, {**asked, "tools": [_TOOL], "tool_choice": "required", "max_tokens": 60}
            case "logprobs":
                yield CHAT, {**asked, "logprobs": True, "top_logprobs": 3, "max_tokens": 24}


def malformed() -> list[Malformed]:
    """Requests that no server should answer with 200, and the status that each is due."""
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}

    def changed(**fields: object) -> bytes:
        return json.dumps({**asked, **fields}).encode()

    grammar = {"grammar": "root ::= nowhere"}
    return [
        Malformed("not JSON", 400, b"{"),
        Malformed("a list", 400, b"[]"),
        Malformed("nothing", 400, b""),
        Malformed("invalid UTF-8", 400, b'{"messages": "\xff\xfe"}'),
        Malformed("no messages", 400, b"{}"),
        Malformed("a word as a number", 400, changed(temperature="hot")),
        Malformed("a huge number", 400, changed(temperature=1e300)),
        Malformed("a negative number", 400, changed(max_tokens=-5)),
        Malformed("a broken grammar", 400, changed(**grammar)),
        Malformed("ten contexts", 400, changed(messages=_said("word " * 10 * CONTEXT))),
        Malformed("no such route", 404, b"{}", path="/v1/nothing"),
        Malformed("the wrong method", 405, b"", method="GET"),
        Malformed("no key", 401, changed(), key=False),
    ]


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]
