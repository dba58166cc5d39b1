"""What a request asks of the sampler and of the answer's form."""

import json
import os
import re
from dataclasses import dataclass
from typing import Any, Literal

from coldpress.serve.api import fields
from coldpress.serve.sampling import GenerateOptions
from coldpress.serve.speculation import SPECULATE, Speculate

Kind = Literal["chat", "completion"]

_MAX_TOKENS = 1_000_000
_MAX_STOPS = 16
_MAX_STOP_CHARACTERS = 256
_MAX_BIASES = 1024
_MAX_BIAS = 100
_MAX_GRAMMAR_CHARACTERS = 64 << 10
# OpenAI's limits: of chats, and of the older completions.
_MAX_LOGPROBS = {"chat": 20, "completion": 5}


@dataclass(frozen=True)
class Form:
    """What the answer must follow: a JSON ``schema`` (empty: any object), else a GBNF ``grammar``.

    ``param`` is the field that asked for it.
    """

    param: str
    schema: dict[str, Any] | None = None
    grammar: str = ""


def options(kind: Kind, of: dict[str, Any]) -> GenerateOptions:
    """How to choose tokens, from a request's fields.

    Raises:
        ApiError: 400.
    """
    preset = GenerateOptions()
    # OpenAI's completions end after 16 tokens unless asked otherwise.
    default = 16 if kind == "completion" else preset.max_tokens
    name = "max_tokens" if of.get("max_completion_tokens") is None else "max_completion_tokens"
    seed = fields.integer(of, "seed", None, -(1 << 63), (1 << 63) - 1)
    return GenerateOptions(
        max_tokens=fields.integer(of, name, default, 1, _MAX_TOKENS),
        stop=_stop(of.get("stop")),
        temperature=fields.number(of, "temperature", preset.temperature, 0, 2),
        top_k=fields.integer(of, "top_k", preset.top_k, 0, 1 << 20),
        top_p=fields.number(of, "top_p", preset.top_p, 0, 1),
        min_p=fields.number(of, "min_p", preset.min_p, 0, 1),
        seed=(int.from_bytes(os.urandom(8), "big") if seed is None else seed) % 0xFFFFFFFF,
        repeat_penalty=fields.number(of, "repeat_penalty", preset.repeat_penalty, 0.1, 10),
        frequency_penalty=fields.number(of, "frequency_penalty", preset.frequency_penalty, -2, 2),
        presence_penalty=fields.number(of, "presence_penalty", preset.presence_penalty, -2, 2),
        logit_bias=_biases(of.get("logit_bias")),
        logprobs=_logprobs(kind, of),
        speculate=_speculate(of.get("speculative")),
    )


def _speculate(asked: object) -> Speculate | None:
    if asked is not None and asked not in SPECULATE:
        fields.refuse("speculative", f"must be one of {', '.join(SPECULATE)}")
    return next((each for each in SPECULATE if each == asked), None)


def _biases(biases: object) -> tuple[tuple[int, float], ...]:
    if biases is None:
        return ()
    if not isinstance(biases, dict) or len(biases) > _MAX_BIASES:
        fields.refuse("logit_bias", f"must be an object of at most {_MAX_BIASES} tokens")
    if not all(isinstance(token, str) and re.fullmatch("[0-9]{1,9}", token) for token in biases):
        fields.refuse("logit_bias", "must have token numbers as keys")
    return tuple(
        (int(token), fields.number({"logit_bias": value}, "logit_bias", 0.0, -_MAX_BIAS, _MAX_BIAS))
        for token, value in biases.items()
    )


def _logprobs(kind: Kind, of: dict[str, Any]) -> int | None:
    """How many of the likeliest tokens to report beside the chosen ones; None: report nothing."""
    most = _MAX_LOGPROBS[kind]
    if kind == "completion":
        count: int | None = fields.integer(of, "logprobs", None, 0, most)
        return count
    top = fields.integer(of, "top_logprobs", 0, 0, most)
    if fields.flag(of, "logprobs"):
        return int(top)
    if top:
        fields.refuse("top_logprobs", "needs logprobs to be true")
    return None


def form(of: dict[str, Any]) -> Form | None:
    """The form that a request's fields ask for.

    Raises:
        ApiError: 400.
    """
    asked = of.get("response_format")
    grammar = of.get("grammar")
    if asked is not None and not isinstance(asked, dict):
        fields.refuse("response_format", "must be an object")
    if grammar is not None:
        if asked and asked.get("type") != "text":
            fields.refuse("grammar", "cannot be combined with response_format")
        if not 1 <= len(fields.text("grammar", grammar)) <= _MAX_GRAMMAR_CHARACTERS:
            fields.refuse("grammar", f"must have 1 to {_MAX_GRAMMAR_CHARACTERS} characters")
        return Form("grammar", grammar=grammar)
    kind = asked.get("type") if asked else "text"
    if kind not in ("text", "json_object", "json_schema"):
        fields.refuse("response_format", "must be of type text, json_object or json_schema")
    if not asked or kind == "text":
        return None
    wanted = {} if kind == "json_object" else schema("response_format", asked.get("json_schema"))
    return Form("response_format", schema=wanted)


def schema(param: str, described: object) -> dict[str, Any]:
    """The JSON schema in a field's ``schema``.

    Raises:
        ApiError: 400: there is none, or it is too long.
    """
    found = described.get("schema") if isinstance(described, dict) else None
    if not isinstance(found, dict):
        fields.refuse(param, "must have a schema in json_schema")
    return checked(param, found)


def checked(param: str, schema: dict[str, Any]) -> dict[str, Any]:
    """A schema of bearable depth and length.

    Raises:
        ApiError: 400.
    """
    if fields.is_deep(schema):
        fields.refuse(param, "is nested too deep")
    if len(json.dumps(schema)) > _MAX_GRAMMAR_CHARACTERS:
        fields.refuse(param, f"has a schema of over {_MAX_GRAMMAR_CHARACTERS} characters")
    return schema


def _stop(stop: object) -> tuple[str, ...]:
    strings = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(strings, list) or len(strings) > _MAX_STOPS:
        fields.refuse("stop", f"must be a string or a list of at most {_MAX_STOPS}")
    for one in strings:
        if not 1 <= len(fields.text("stop", one)) <= _MAX_STOP_CHARACTERS:
            fields.refuse("stop", f"must have 1 to {_MAX_STOP_CHARACTERS} characters")
    return tuple(strings)
