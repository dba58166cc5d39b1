"""Tool calls in a model's own notation: made certain by a grammar, and read back out of its answer.

The notation is told from the chat template: Hermes and Qwen write ``<tool_call>…</tool_call>``, Mistral
``[TOOL_CALLS] […]``, Llama 3 the bare JSON. Inside its marks a call is always valid JSON that
follows the function's schema.
"""

import json
import os
from dataclasses import dataclass
from typing import Any

from coldpress.serve.api.fields import ApiError
from coldpress.serve.api.messages import Tools
from coldpress.serve.model import Model


@dataclass(frozen=True)
class Notation:
    """What stands around a call; ``opening`` is empty where the whole answer is one."""

    opening: str
    before: str
    closing: str
    arguments: str = "arguments"


@dataclass(frozen=True)
class Call:
    """A function that the model calls, with its arguments as JSON text."""

    id: str
    name: str
    arguments: str

    def plain(self) -> dict[str, Any]:
        """As OpenAI writes it."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


_HERMES = Notation("<tool_call>", "\n", "\n</tool_call>")
_MISTRAL = Notation("[TOOL_CALLS]", "[", "]")
_BARE = Notation("", "", "", "parameters")


def notation(template: str) -> Notation:
    """How a template's model writes calls.

    Raises:
        ApiError: 400: its template has no place for tools.
    """
    if "tools" not in template:
        raise ApiError(
            400, "the model's chat template takes no tools", "unsupported_parameter", param="tools"
        )
    return next((each for each in (_HERMES, _MISTRAL) if each.opening in template), _BARE)


def mark(model: Model, of: Notation) -> int | None:
    """The token that opens a call, where it is one token."""
    tokens = model.tokenize(of.opening, add_special=False, parse_special=True) if of.opening else []
    return tokens[0] if len(tokens) == 1 else None


def grammar(model: Model, of: Notation, tools: Tools) -> str | None:
    """The grammar, in Lark, of an answer that must or may call; None leaves a bare one free."""
    schema = {"anyOf": [_call_schema(of, each["function"]) for each in tools.functions]}
    call = f'"{_escaped(of.before)}" %json {json.dumps(schema)} "{_escaped(of.closing)}"'
    if not of.opening:
        return f"%llguidance {{}}\nstart: call\ncall: {call}\n" if tools.must else None
    token = mark(model, of)
    opening = f'"{of.opening}"' if token is None else f"<[{token}]>"
    if tools.must:
        return f"%llguidance {{}}\nstart: {opening} call\ncall: {call}\n"
    if token is None:
        free = f"start: (begin call)* TEXT\nbegin[lazy]: TEXT {opening}\n"
    else:
        free = f"start: (TEXT {opening} call)* TEXT\n"
    return f"%llguidance {{}}\n{free}call: {call}\nTEXT: /(.|\\n)*/\n"


def _call_schema(of: Notation, function: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, of.arguments: function["parameters"]},
        "required": ["name", of.arguments],
        "additionalProperties": False,
    }


def _escaped(text: str) -> str:
    return json.dumps(text)[1:-1]


class CallReader:
    """Tells text from calls while an answer arrives; what may be a call is held back."""

    def __init__(self, of: Notation, tools: Tools) -> None:
        self._notation = of
        self._names = frozenset(tools.names)
        self._held = ""
        self._opened = False

    def push(self, text: str) -> str:
        """Take the next text; the part that is certainly no call is returned."""
        self._held += text
        opening = self._notation.opening
        if not opening:
            # Bare calls are whole answers, and those begin with a brace.
            self._opened = self._opened or self._held.lstrip()[:1] in {"", "{"}
        elif not self._opened and opening in self._held:
            self._opened = True
            before, _, rest = self._held.partition(opening)
            self._held = opening + rest
            return before
        if self._opened:
            return ""
        keep = next(
            (n for n in range(len(opening) - 1, 0, -1) if self._held.endswith(opening[:n])), 0
        )
        free, self._held = (
            self._held[: len(self._held) - keep],
            self._held[len(self._held) - keep :],
        )
        return free

    def finish(self) -> tuple[str, tuple[Call, ...]]:
        """What was held back: text that was no call after all, and the calls."""
        held, self._held = self._held, ""
        if not self._opened:
            return held, ()
        opening = self._notation.opening
        parts = held.split(opening) if opening else [held]
        calls = [call for part in parts if part.strip() for call in self._read(part)]
        return ("", tuple(calls)) if calls else (held, ())

    def _read(self, part: str) -> list[Call]:
        """Every call in the text after an opening; none if it was cut off."""
        text = part.lstrip()
        if self._notation is _MISTRAL:
            text = text.removeprefix("[")
        found = []
        decoder = json.JSONDecoder()
        while text.startswith("{"):
            try:
                value, end = decoder.raw_decode(text)
            except (ValueError, RecursionError):
                break
            name, arguments = value.get("name"), value.get(self._notation.arguments)
            if name in self._names and isinstance(arguments, dict):
                written = json.dumps(arguments, ensure_ascii=False)
                found.append(Call(f"call_{os.urandom(12).hex()}", name, written))
            text = text[end:].lstrip(" ,\n")
        return found
