"""Requests: what is refused, with which status and field, and that nothing else can come out."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldpress.serve.api import template as chat_template
from coldpress.serve.api.protocol import MAX_BODY_BYTES, ApiError, parse

HELLO = {"messages": [{"role": "user", "content": "hello"}]}


def _refusal(body: bytes) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse("chat", body)
    return caught.value


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", -1),
        ("max_tokens", 0),
        ("max_tokens", 10**30),
        ("max_tokens", 2.5),
        ("max_tokens", True),
        ("max_tokens", "7"),
        ("max_completion_tokens", -1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", -0.1),
        ("temperature", "hot"),
        ("top_p", 1.5),
        ("top_k", -1),
        ("min_p", True),
        ("seed", 1 << 70),
        ("stop", 5),
        ("stop", [""]),
        ("stop", ["x"] * 17),
        ("stop", [3]),
        ("stream", "yes"),
        ("stream_options", []),
        ("model", 3),
        ("messages", []),
        ("messages", "hello"),
        ("n", 2),
        ("logprobs", 1),
        ("tools", [{"type": "function"}]),
        ("response_format", {"type": "xml"}),
    ],
)
def test_a_bad_field_is_named(field: str, value: Any) -> None:
    error = _refusal(json.dumps({**HELLO, field: value}).encode())
    assert error.status == 400
    assert error.body["error"]["param"] == field
    assert error.body["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("message", "param"),
    [
        (3, "messages[0]"),
        ({"role": "wizard", "content": "x"}, "messages[0].role"),
        ({"role": ["user"], "content": "x"}, "messages[0].role"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": "\ud800"}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages[0].content"),
    ],
)
def test_a_bad_message_is_named(message: Any, param: str) -> None:
    assert _refusal(json.dumps({"messages": [message]}).encode()).body["error"]["param"] == param


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff\xfe{", b"[]", b"3", b"[" * 100_000, b"9" * 9999]
)
def test_what_is_not_a_json_object_is_refused(body: bytes) -> None:
    error = _refusal(body)
    assert (error.status, error.body["error"]["code"]) == (400, "invalid_json")


def test_a_large_body_is_413() -> None:
    assert _refusal(b" " * (MAX_BODY_BYTES + 1)).status == 413


def test_defaults_and_spellings() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = {
        "messages": [{"role": "developer", "content": parts}],
        "max_completion_tokens": 3,
        "stop": "x",
        "seed": -1,
        "user": "ignored",
        "tools": None,
    }
    request = parse("chat", json.dumps(body).encode())
    assert request.messages == ({"role": "system", "content": "ab"},)
    assert (request.options.max_tokens, request.options.stop) == (3, ("x",))
    assert request.options.seed != 0xFFFFFFFF  # libllama would take it for "random"
    assert parse("completion", b'{"prompt": "x"}').options.max_tokens == 16


_NAMES = """model messages prompt max_tokens temperature top_k top_p min_p seed stop stream n tools
stream_options logit_bias response_format"""
_KINDS = st.sampled_from(["chat", "completion"])
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(
    st.sampled_from(["chat", "completion"]), st.dictionaries(st.sampled_from(_NAMES.split()), _JSON)
)
def test_any_body_is_parsed_or_refused(kind: Any, fields: dict[str, Any]) -> None:
    try:
        options = parse(kind, json.dumps(fields).encode()).options
    except ApiError as error:
        assert 400 <= error.status < 500
    else:
        assert 0 <= options.temperature <= 2
        assert 0 <= options.seed < 0xFFFFFFFF


def _render(text: str) -> str:
    return chat_template.render(
        text, ({"role": "user", "content": "1 < 2"},), bos="<s>", eos="</s>"
    )


def test_templates_render_as_in_transformers() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    template = (
        "{{ bos_token }}{% for m in messages %}\n    {%- if loop.first %}[{% endif %}\n"
        "{{ m['role'] | upper }}: {{ m | tojson }}{{ eos_token }}\n{% endfor %}\n"
        "{% if add_generation_prompt %}A:{% endif %}"
    )
    expected, _ = render_jinja_template(
        conversations=[[{"role": "user", "content": "1 < 2"}]],
        chat_template=template,
        add_generation_prompt=True,
        bos_token="<s>",
        eos_token="</s>",
    )
    assert _render(template) == expected[0]


@pytest.mark.parametrize(
    "template",
    [
        "{% if %}",
        "{{ raise_exception('no') }}",
        "{{ messages.append(1) }}",
        "{{ messages[9].role.x }}",
        "{{ 1 / 0 }}",
        "{{ ''.__class__.__mro__ }}",
    ],
)
def test_a_template_that_fails_or_escapes_is_refused(template: str) -> None:
    with pytest.raises(ApiError) as caught:
        _render(template)
    assert caught.value.status == 400
