"""What a client may ask for: OpenAI's request bodies, checked strictly.

A field that would change the answer and is not supported is refused; unknown fields are ignored, as
clients send many that only OpenAI's own service reads.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from coldpress.serve.api import fields, messages, sampling_fields
from coldpress.serve.api.fields import ApiError
from coldpress.serve.api.messages import Message, Tools
from coldpress.serve.api.sampling_fields import Form, Kind
from coldpress.serve.sampling import GenerateOptions

MAX_BODY_BYTES = 4 << 20
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "functions": ([],),
    "audio": (),
    "prediction": (),
}
"""Fields that are not supported, with the values (beside null) that ask for nothing."""
_OF_DELIVERY = {"resume", "speculative", "stream", "stream_options"}
"""Fields that change how an answer is delivered, but not the answer."""


@dataclass(frozen=True)
class Request:
    """A request for one answer; ``messages`` for a chat, ``prompt`` for a completion."""

    kind: Kind
    messages: tuple[Message, ...]
    tools: Tools | None
    prompt: str
    options: GenerateOptions
    form: Form | None
    stream: bool
    include_usage: bool
    resume: str | None
    """A cursor of an answer to this request that was cut."""
    digest: bytes
    """Of everything that the answer hangs on."""


def parse(kind: Kind, body: bytes) -> Request:
    """Check a request's body.

    Raises:
        ApiError: 400 with the field in ``param``; 413.
    """
    of = parse_json(body)
    for name, neutral in _NEUTRAL.items():
        if of.get(name) is not None and of[name] not in neutral:
            fields.refuse(name, "is not supported", "unsupported_parameter")
    if not isinstance(of.get("model", ""), str):
        fields.refuse("model", "must be a string")
    stream_options = of.get("stream_options")
    if stream_options is None:
        stream_options = {}
    if not isinstance(stream_options, dict):
        fields.refuse("stream_options", "must be an object")
    tools = messages.tools(of) if kind == "chat" else None
    form = sampling_fields.form(of)
    if form is not None and tools is not None:
        fields.refuse(form.param, "cannot be combined with tools", "unsupported_parameter")
    return Request(
        kind=kind,
        messages=messages.messages(of) if kind == "chat" else (),
        tools=tools,
        prompt=_prompt(of) if kind == "completion" else "",
        options=sampling_fields.options(kind, of),
        form=form,
        stream=fields.flag(of, "stream"),
        include_usage=fields.flag(stream_options, "include_usage"),
        resume=None if of.get("resume") is None else fields.text("resume", of["resume"]),
        digest=_digest(kind, of),
    )


def chat_body(message: str) -> bytes:
    """A WebSocket's message as a chat request's body; plain text is what the user says."""
    try:
        if isinstance(json.loads(message), dict):
            return message.encode()
    except (ValueError, RecursionError):
        pass
    return json.dumps({"messages": [{"role": "user", "content": message}]}).encode()


def parse_tokenize(body: bytes) -> tuple[str, bool]:
    """The text of a request to /tokenize, and whether BOS and EOS are to be added.

    Raises:
        ApiError: 400, 413.
    """
    of = parse_json(body)
    return fields.text("content", of.get("content")), fields.flag(of, "add_special")


def check_length(n_bytes: int) -> None:
    """Raise an ``ApiError``, 413, for a body that is too long."""
    if n_bytes > MAX_BODY_BYTES:
        raise ApiError(413, f"the body is larger than {MAX_BODY_BYTES} bytes", "body_too_large")


def parse_json(body: bytes) -> dict[str, Any]:
    """A body that is a JSON object.

    Raises:
        ApiError: 400, 413.
    """
    check_length(len(body))
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}", "invalid_json") from error
    if not isinstance(found, dict):
        raise ApiError(400, "the body is not a JSON object", "invalid_json")
    return found


def _digest(kind: Kind, of: dict[str, Any]) -> bytes:
    asked = {name: value for name, value in of.items() if name not in _OF_DELIVERY}
    canonical = json.dumps([kind, asked], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).digest()


def _prompt(of: dict[str, Any]) -> str:
    prompt = of.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    return fields.text("prompt", prompt)
