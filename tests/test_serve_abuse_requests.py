"""Requests that nobody should send: refused in OpenAI's shape, soon, and the next one is served."""

import json
import threading
from typing import Any

import httpx
import pytest

from coldpress.serve.api.protocol import MAX_BODY_BYTES
from tests.abused_server import COMPLETIONS, SHORT, Server

NESTED = b"[" * 100_000


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": "\xff\xfe"}',
        b'{"prompt": "\xed\xa0\x80"}',
        b"\x00",
        b'{"prompt": "a\x00b"}',
        NESTED,
        b'{"prompt": ' + NESTED,
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        b'{"prompt": ' + b"9" * 100_000 + b"}",
        b'{"prompt": "x", "seed": ' + b"9" * 5_000 + b"}",
        b'{"prompt": "x", "prompt": {}}',
        b"",
        b"null",
        b'"' + b"x" * 100_000,
    ],
)
def test_what_is_no_request(server: Server, body: bytes) -> None:
    answer = httpx.post(server.url + COMPLETIONS, content=body, timeout=10)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("field", ["schema", "tool", "arguments"])
def test_deep_json_where_json_is_wanted(server: Server, field: str) -> None:
    """Python's own limit must not be met half-way, outside the place that expects it."""
    for depth in (*range(50, 440, 20), *range(440, 500), 1000):
        answer = httpx.post(
            f"{server.url}/v1/chat/completions", content=_deep(field, depth), timeout=10
        )
        assert answer.status_code in {200, 400}, depth


def _deep(field: str, depth: int) -> str:
    """A request with JSON in it that is nested as deep as that, twice over."""
    # Written by hand: json.dumps has the same limit.
    hole, deep = '"HOLE"', '{"properties":{"a":' * depth + "{}" + "}}" * depth
    body: dict[str, Any] = {"max_tokens": 2, "messages": [{"role": "user", "content": "x"}]}
    match field:
        case "schema":
            body["response_format"] = _form("HOLE")["response_format"]
        case "tool":
            body["tools"] = [{"type": "function", "function": {"name": "x", "parameters": "HOLE"}}]
        case _:
            hole, deep = "HOLE", json.dumps(deep)[1:-1]
            called = {"type": "function", "function": {"name": "x", "arguments": "HOLE"}}
            body["messages"].append({"role": "assistant", "tool_calls": [called]})
    return json.dumps(body).replace(hole, deep)


def test_a_nul_is_a_character(server: Server) -> None:
    for body in ({"prompt": "a\0b"}, {"prompt": "\0", "stop": ["\0"]}):
        assert server.post({**SHORT, **body}).status_code == 200


@pytest.mark.parametrize("path", [COMPLETIONS, "/v1/chat/completions"])
def test_ten_contexts_of_prompt(server: Server, path: str) -> None:
    """As much as a body may hold; each character is a token or two here."""
    text = "x y" * ((MAX_BODY_BYTES - 1000) // 3)
    body = (
        {"prompt": text}
        if path == COMPLETIONS
        else {"messages": [{"role": "user", "content": text}]}
    )
    answer = server.post(body, path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")


NUMBERS = {
    "max_tokens": [0, -1, 10**7, 10**30, 1.5, "5", True, [], {}],
    "temperature": [-1, 2.1, 1e300, float("nan"), float("inf"), -float("inf"), "1", True, [1], {}],
    "top_p": [-0.1, 1.1, float("nan"), "x", False],
    "min_p": [-0.1, 1.1, float("nan"), "x", False],
    "top_k": [-1, 10**9, 0.5, "x", True, float("nan")],
    "seed": [1.5, 10**30, -(10**30), "x", True, float("nan")],
    "repeat_penalty": [0, -1, 11, float("nan"), float("inf"), "x"],
    "frequency_penalty": [-3, 3, float("nan"), "x"],
    "presence_penalty": [-3, 3, float("nan"), "x"],
    "logprobs": [-1, 6, 10**9, "x", 1.5, {}],
    "logit_bias": [
        [], 3, "x", {"a": 1}, {"1": 101}, {"1": float("nan")}, {"1": "x"}, {"-1": 1}, {"1.5": 1},
        {"9" * 5000: 1}, {str(2**31): 1}, {str(2**40): 1}, {"²": 1}, {str(n): 1 for n in range(2000)},
    ],
    "stop": [3, [3], {}, "", [""], "x" * 1000, ["x"] * 100, [None], ["\ud800"], True],
    "stream": [1, "true", [], {}],
    "stream_options": [1, "x", [], {"include_usage": 3}],
    "grammar": [3, "", "x" * 100_000, {}, [], "\ud800", "root ::= root", "root ::= missing"],
    "response_format": [
        3, "json", [], {"type": "xml"}, {"type": ["json_object"]}, {"type": {}}, {"type": "json_schema"},
        {"type": "json_schema", "json_schema": 3}, {"type": "json_schema", "json_schema": {"schema": 3}},
        {"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}},
        {"type": "json_schema", "json_schema": {"schema": {"$ref": "file:///etc/passwd"}}},
        {"type": "json_schema", "json_schema": {"schema": {"$ref": "http://127.0.0.1/x"}}},
        {"type": "json_schema", "json_schema": {"schema": {"properties": 3}}},
        {"type": "json_schema", "json_schema": {"schema": {"enum": []}}},
    ],
    "n": [2, "x", [], {}, 10**9],
    "model": [3, [], {}],
    "prompt": [None, 3, [], ["a", "b"], [1, 2], {}, True, "\ud800"],
}  # fmt: skip


@pytest.mark.parametrize("field", NUMBERS)
def test_every_field_is_checked(server: Server, field: str) -> None:
    for value in NUMBERS[field]:
        body = json.dumps({**SHORT, field: value})
        answer = httpx.post(server.url + COMPLETIONS, content=body, timeout=10)
        assert answer.status_code == 400, value
        assert answer.json()["error"]["type"] == "invalid_request_error"


def _form(schema: Any) -> dict[str, Any]:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return {"prompt": "x", "max_tokens": 20, "response_format": form}


def _pattern(pattern: str) -> dict[str, Any]:
    return {"type": "string", "pattern": pattern}


def _doubling(operator: str, depth: int) -> dict[str, Any]:
    """Each definition refers twice to the one before."""
    parts: dict[str, Any] = {"d0": {"type": "object"}}
    for n in range(1, depth):
        parts[f"d{n}"] = {operator: [{"$ref": f"#/$defs/d{n - 1}"}] * 2}
    return {"$defs": parts, "$ref": f"#/$defs/d{depth - 1}"}


BOMBS: dict[str, dict[str, Any]] = {
    "minItems 1e9": {"type": "array", "items": {"type": "integer"}, "minItems": 10**9},
    "minItems maxItems": {"type": "array", "items": {}, "minItems": 10**5, "maxItems": 10**6},
    "minLength 1e9": {"type": "string", "minLength": 10**9},
    "minProperties": {"type": "object", "minProperties": 10**9},
    "allOf 40": _doubling("allOf", 40),
    "anyOf 40": _doubling("anyOf", 40),
    "oneOf 40": _doubling("oneOf", 40),
    "enum 10k": {"enum": [f"value{n}" for n in range(4500)]},
    "const": {"const": "x" * 60_000},
    "recursive": {"$ref": "#"},
    "recursive anyOf": {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]},
    "recursive allOf": {"allOf": [{"$ref": "#"}, {"type": "object"}]},
    "mutual": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "tree": {"type": "object", "properties": {"a": {"$ref": "#"}, "b": {"$ref": "#"}}, "required": ["a", "b"]},
    "properties": {"type": "object", "properties": {f"p{n}": {"type": "number"} for n in range(1500)}},
    "required": {
        "properties": {f"p{n}": {"type": "number"} for n in range(900)},
        "required": [f"p{n}" for n in range(900)],
    },
    "(a+)+$": _pattern("^(a+)+$"),
    "((a+)+)+b": _pattern("^(((a+)+)+)+b$"),
    "(a|a)*b": _pattern("^(a|a|a|a)*b$"),
    "a{1,100000}": _pattern("^a{1,100000}$"),
    "(a{1,1000}){1,1000}": _pattern("^(a{1,1000}){1,1000}$"),
    "nested repeats": _pattern("^((((a{1,100}){1,100}){1,100}){1,100}){1,100}$"),
    ".*a.{30}": _pattern("^.*a.{30}$"),
    "(.*a){20}": _pattern("^" + ".*a" * 20 + "$"),
    "(x+x+)+y": _pattern("^(x+x+)+y$"),
    "unicode": _pattern("^(\\p{L}{1,500}){1,500}$"),
    "lookahead": _pattern("^(?=a)(?!b).*$"),
    "backreference": _pattern("^(a)\\1$"),
    "open bracket": _pattern("^(" * 10_000),
    "pattern of 60 kB": _pattern("a?" * 20_000 + "a" * 20_000),
    "patternProperties": {
        "patternProperties": {f"^(a+)+{n}.*b$": {"type": "integer"} for n in range(100)}
    },
    "multipleOf": {"type": "number", "multipleOf": 1e-300},
    "huge numbers": {"type": "integer", "minimum": -(10**300), "maximum": 10**300},
    "uniqueItems": {"type": "array", "uniqueItems": True, "items": {"enum": list(range(2000))}},
    "not": {"not": {"not": {"not": {}}}},
    "if": {"if": {}, "then": {"$ref": "#"}},
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_schema_bomb(server: Server, bomb: str) -> None:
    before = server.reset_peak()
    probes: list[int] = []
    done = threading.Event()

    def probe() -> None:
        while not done.is_set():
            probes.append(httpx.get(f"{server.url}/healthz", timeout=5).status_code)

    probing = threading.Thread(target=probe)
    probing.start()
    try:
        answer = server.post(_form(BOMBS[bomb]))
    finally:
        done.set()
        probing.join()
    # Followed, refused, or given up under way: said as such, and nobody else waits meanwhile.
    assert (
        answer.status_code in {200, 400}
        or "cannot be followed" in answer.json()["error"]["message"]
    )
    assert set(probes) <= {200}
    assert server.peak_mib - before < 512


@pytest.mark.parametrize("bomb", ["recursive", "recursive anyOf", "mutual"])
def test_a_schema_that_nothing_fits_is_refused_before_it_is_queued(
    server: Server, bomb: str
) -> None:
    answer = server.post(_form(BOMBS[bomb]))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "response_format")


@pytest.mark.parametrize(
    "grammar",
    [
        "root ::= root root | root",
        "root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000,
        'root ::= "a"{1,1000000000}',
        'root ::= (("a"{1,1000}){1,1000}){1,1000}',
        "\n".join(['root ::= x0'] + [f"x{n} ::= x{n + 1} x{n + 1}" for n in range(60)] + ['x60 ::= "a"']),
        'root ::= [^\\x00-\\U0010FFFF]',
        'root ::= "' + "\\\\" * 30_000 + '"',
        "root ::= " + " | ".join(f'"{n}"' for n in range(6000)),
        "\x00\x01\x02",
        '%llguidance {"no_forcing": 3}\nstart: @gen',
    ],
)  # fmt: skip
def test_a_grammar_bomb(server: Server, grammar: str) -> None:
    answer = server.post({"prompt": "x", "max_tokens": 20, "grammar": grammar})
    assert (
        answer.status_code in {200, 400}
        or "cannot be followed" in answer.json()["error"]["message"]
    )
