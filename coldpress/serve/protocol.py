"""What a client may ask for: OpenAI's request bodies, checked strictly, and OpenAI's errors.

A field that would change the answer and is not supported is refused; unknown fields are ignored, as
clients send many that only OpenAI's own service reads.
"""

import json
import math
import os
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from coldpress.serve.sampling import GenerateOptions

MAX_BODY_BYTES = 4 << 20
_MAX_TOKENS = 1_000_000
_MAX_MESSAGES = 2048
_MAX_STOPS = 16
_MAX_STOP_CHARACTERS = 256
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "tools": ([],),
    "functions": ([],),
    "response_format": ({"type": "text"},),
}
"""Fields that are not supported, with the values (beside null) that ask for nothing."""

Kind = Literal["chat", "completion"]


class ApiError(Exception):
    """An answer that says what is wrong, in the shape of OpenAI's errors."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        *,
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
        kind = "invalid_request_error" if status < 429 else "server_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass(frozen=True)
class Request:
    """A request for one answer; ``messages`` for a chat, ``prompt`` for a completion."""

    kind: Kind
    messages: tuple[dict[str, str], ...]
    prompt: str
    options: GenerateOptions
    stream: bool
    include_usage: bool


def parse(kind: Kind, body: bytes) -> Request:
    """Check a request's body.

    Raises:
        ApiError: 400 with the field in ``param``; 413.
    """
    fields = _json(body)
    for name, neutral in _NEUTRAL.items():
        if fields.get(name) is not None and fields[name] not in neutral:
            _refuse(name, "is not supported", "unsupported_parameter")
    if not isinstance(fields.get("model", ""), str):
        _refuse("model", "must be a string")
    stream_options = fields.get("stream_options")
    if stream_options is None:
        stream_options = {}
    if not isinstance(stream_options, dict):
        _refuse("stream_options", "must be an object")
    return Request(
        kind=kind,
        messages=_messages(fields) if kind == "chat" else (),
        prompt=_prompt(fields) if kind == "completion" else "",
        options=_options(kind, fields),
        stream=_flag(fields, "stream"),
        include_usage=_flag(stream_options, "include_usage"),
    )


def _json(body: bytes) -> dict[str, Any]:
    if len(body) > MAX_BODY_BYTES:
        raise ApiError(413, f"the body is larger than {MAX_BODY_BYTES} bytes", "body_too_large")
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}", "invalid_json") from error
    if not isinstance(fields, dict):
        raise ApiError(400, "the body is not a JSON object", "invalid_json")
    return fields


def _messages(fields: dict[str, Any]) -> tuple[dict[str, str], ...]:
    messages = fields.get("messages")
    if not isinstance(messages, list) or not 1 <= len(messages) <= _MAX_MESSAGES:
        _refuse("messages", f"must be a list of 1 to {_MAX_MESSAGES} messages")
    return tuple(_message(f"messages[{at}]", message) for at, message in enumerate(messages))


def _message(param: str, message: object) -> dict[str, str]:
    if not isinstance(message, dict):
        _refuse(param, "must be an object")
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        _refuse(f"{param}.role", f"must be one of {', '.join(_ROLES)}")
    return {"role": _ROLES[role], "content": _content(f"{param}.content", message.get("content"))}


def _content(param: str, content: object) -> str:
    if isinstance(content, list):
        return "".join(_part(param, part) for part in content)
    return _text(param, content)


def _part(param: str, part: object) -> str:
    if not isinstance(part, dict) or part.get("type") != "text":
        _refuse(param, "may have parts of type text only", "unsupported_parameter")
    return _text(param, part.get("text"))


def _prompt(fields: dict[str, Any]) -> str:
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    return _text("prompt", prompt)


def _options(kind: Kind, fields: dict[str, Any]) -> GenerateOptions:
    preset = GenerateOptions()
    # OpenAI's completions end after 16 tokens unless asked otherwise.
    default = 16 if kind == "completion" else preset.max_tokens
    name = "max_tokens" if fields.get("max_completion_tokens") is None else "max_completion_tokens"
    seed = _integer(fields, "seed", None, -(1 << 63), (1 << 63) - 1)
    return GenerateOptions(
        max_tokens=_integer(fields, name, default, 1, _MAX_TOKENS),
        stop=_stop(fields.get("stop")),
        temperature=_number(fields, "temperature", preset.temperature, 0, 2),
        top_k=_integer(fields, "top_k", preset.top_k, 0, 1 << 20),
        top_p=_number(fields, "top_p", preset.top_p, 0, 1),
        min_p=_number(fields, "min_p", preset.min_p, 0, 1),
        seed=(int.from_bytes(os.urandom(8), "big") if seed is None else seed) % 0xFFFFFFFF,
    )


def _stop(stop: object) -> tuple[str, ...]:
    strings = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(strings, list) or len(strings) > _MAX_STOPS:
        _refuse("stop", f"must be a string or a list of at most {_MAX_STOPS}")
    for one in strings:
        if not 1 <= len(_text("stop", one)) <= _MAX_STOP_CHARACTERS:
            _refuse("stop", f"must have 1 to {_MAX_STOP_CHARACTERS} characters")
    return tuple(strings)


def _number(fields: dict[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = fields.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        _refuse(name, "must be a number")
    if math.isnan(value) or not low <= value <= high:
        _refuse(name, f"must be from {low} to {high}")
    return float(value)


def _integer(fields: dict[str, Any], name: str, default: Any, low: int, high: int) -> Any:
    """An integer field; ``default`` may be None."""
    value = fields.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        _refuse(name, "must be an integer")
    if not low <= value <= high:
        _refuse(name, f"must be from {low} to {high}")
    return value


def _flag(fields: dict[str, Any], name: str) -> bool:
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        _refuse(name, "must be true or false")
    return bool(value)


def _text(param: str, value: object) -> str:
    if not isinstance(value, str):
        _refuse(param, "must be a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        _refuse(param, "has half a surrogate pair, which is not text")
    return value


def _refuse(param: str, why: str, code: str = "invalid_value") -> NoReturn:
    raise ApiError(400, f"{param} {why}", code, param=param)
