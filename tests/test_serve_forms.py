"""Penalties, biases, log-probabilities, schemas, grammars and tools: against slow versions and other judges."""

import json
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.sync.client import connect

from coldpress.serve.api.messages import Tools
from coldpress.serve.api.tools import Call, CallReader, notation
from coldpress.serve.engine import Engine
from coldpress.serve.options import EngineOptions
from coldpress.serve.sampling import GenerateOptions
from coldpress.serve.trace import Trace
from tests import tiny_gguf
from tests.runtime_process import running
from tests.test_serve_engine import Answer

HERMES = (
    "{{ bos_token }}{% if tools %}{% for t in tools %}{{ t | tojson }}\n{% endfor %}<tool_call>{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for c in m.tool_calls or [] %}"
    "<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}\n{% endfor %}<assistant>"
)
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 8},
                "unit": {"enum": ["C", "F"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 7},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
_NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": _NOTHING}}
SCHEMAS: list[dict[str, Any]] = [
    {"type": "boolean"},
    {"enum": ["red", "green", 3, None]},
    {"type": "string", "pattern": "^[0-9]{3}-[a-z]+$", "maxLength": 8},
    {"type": "array", "items": {"type": "integer", "minimum": -5, "maximum": 12}, "minItems": 2, "maxItems": 4},
    {
        "$defs": {"leaf": {"type": "object", "properties": {"n": {"const": 1}}, "required": ["n"],
                           "additionalProperties": False}},
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/leaf"},
                       "b": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/leaf"}]}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("forms") / "model.gguf", template=HERMES)


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[Engine]:
    started = Engine(model, EngineOptions(threads=1), Trace())
    started.start()
    assert started.wait(60), started.failure
    yield started
    started.close()


@pytest.fixture(scope="module")
def client(model: Path) -> Iterator[openai.OpenAI]:
    with (
        running(model, "--port", "0") as process,
        openai.OpenAI(base_url=f"{process.ready_url()}/v1", api_key="x", max_retries=0) as made,
    ):
        yield made


def schema_form(schema: dict[str, Any]) -> dict[str, Any]:
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    return {"response_format": form}


class Slow:
    """The model's logits after any tokens, by llama-cpp-python, with what it has of no sampler."""

    def __init__(self, model: Path) -> None:
        import llama_cpp

        self.peer = llama_cpp.Llama(
            str(model), n_ctx=512, n_threads=1, logits_all=True, verbose=False, flash_attn=True
        )

    def logits(self, tokens: list[int], n_prompt: int | None = None) -> np.ndarray:
        """After the prompt in one batch, which is all by default, and the rest token by token."""
        self.peer.reset()
        self.peer.eval(tokens[:n_prompt])
        for token in tokens[n_prompt:] if n_prompt else []:
            self.peer.eval([token])
        return np.array(self.peer.scores[len(tokens) - 1], np.float64)

    def greedy(self, tokens: list[int], count: int, change: Any) -> list[int]:
        """Greedy tokens by logits that ``change(logits, answer so far)`` has changed."""
        answer: list[int] = []
        for _ in range(count):
            logits = self.logits(tokens + answer)
            answer.append(int(np.argmax(change(logits, answer))))
        return answer


def tokens_of(engine: Engine, options: GenerateOptions, prompt: str = "the sea") -> list[int]:
    """An answer's tokens; every token of this model is one character or a byte of one."""
    answer = Answer(engine, prompt, options)
    found: list[int] = []
    accept = engine._accept

    def spy(generation: Any, choice: Any) -> None:
        if generation is answer.generation:
            found.append(choice.token)
        accept(generation, choice)

    engine._accept = spy
    try:
        answer.end()
    finally:
        engine._accept = accept
    return found


def test_penalties_and_biases_are_the_slow_ones(engine: Engine, model: Path) -> None:
    slow = Slow(model)
    prompt = engine.model.tokenize("the sea", add_special=True, parse_special=False)

    def penalized(repeat: float, frequency: float, presence: float) -> Any:
        def change(logits: np.ndarray, answer: list[int]) -> np.ndarray:
            for token, count in Counter(answer).items():
                logits[token] *= 1 / repeat if logits[token] > 0 else repeat
                logits[token] -= count * frequency + presence
            return logits

        return change

    plain = slow.greedy(prompt, 24, penalized(1, 0, 0))
    for repeat, frequency, presence in ((1.5, 0, 0), (1, 0.9, 0), (1, 0, 1.5), (1.2, 0.3, 0.2)):
        expected = slow.greedy(prompt, 24, penalized(repeat, frequency, presence))
        assert expected != plain
        options = GenerateOptions(
            temperature=0,
            max_tokens=24,
            repeat_penalty=repeat,
            frequency_penalty=frequency,
            presence_penalty=presence,
        )
        assert tokens_of(engine, options) == expected
    biased = GenerateOptions(temperature=0, max_tokens=5, logit_bias=((70, 100.0), (3, -100.0)))
    assert tokens_of(engine, biased) == [70] * 5
    never = GenerateOptions(temperature=0, max_tokens=24, logit_bias=((plain[0], -100.0),))
    assert plain[0] not in tokens_of(engine, never)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logprobs_are_the_models(client: openai.OpenAI, model: Path, temperature: float) -> None:
    """Also where sampling changes the odds: they are of the model, before it."""
    slow = Slow(model)
    done = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "x"}],
        logprobs=True,
        top_logprobs=4,
        max_tokens=12,
        temperature=temperature,
        seed=3,
    )
    said = done.choices[0].logprobs
    assert said is not None and said.content is not None and len(said.content) == 12
    text = "<s><user>x<assistant>"
    tokens = slow.peer.tokenize(text.encode(), add_bos=False, special=True)
    pieces = [slow.peer._model.token_get_text(i) for i in range(slow.peer.n_vocab())]
    n_prompt = len(tokens)
    for each in said.content:
        logits = slow.logits(tokens, n_prompt)
        log_p = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        top = np.argsort(-log_p)[:4]
        assert [one.logprob for one in each.top_logprobs] == pytest.approx(log_p[top], abs=1e-4)
        token = int(np.argmin(np.abs(log_p - each.logprob)))
        assert each.logprob == pytest.approx(log_p[token], abs=1e-4)
        written = pieces[token].replace("▁", " ")
        byte = f"<0x{each.bytes[0]:02X}>" if each.bytes else ""
        assert written == byte or list(written.encode()) == each.bytes
        tokens = [*tokens, token]
    if temperature == 0:
        assert all(each.logprob == each.top_logprobs[0].logprob for each in said.content)


def test_streamed_logprobs_are_those_of_the_whole(client: openai.OpenAI) -> None:
    asked: Any = {
        "model": "tiny", "prompt": "the sea", "max_tokens": 20, "temperature": 0, "logprobs": 2,
    }  # fmt: skip
    whole = client.completions.create(**asked).choices[0]
    chunks = [chunk.choices[0] for chunk in client.completions.create(**asked, stream=True)]
    assert "".join(chunk.text for chunk in chunks) == whole.text
    streamed = [p for chunk in chunks if chunk.logprobs for p in chunk.logprobs.token_logprobs]
    assert whole.logprobs is not None and streamed == whole.logprobs.token_logprobs
    assert len(streamed) == 20


@pytest.mark.parametrize("schema", SCHEMAS)
def test_answers_follow_their_schema(client: openai.OpenAI, schema: dict[str, Any]) -> None:
    for seed in range(4):
        done = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "x"}],
            response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": schema}},
            seed=seed,
            max_tokens=300,
        )
        assert done.choices[0].finish_reason == "stop"
        jsonschema.validate(json.loads(done.choices[0].message.content or ""), schema)


def test_a_json_object_and_a_grammar(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "x"}]
    done = client.chat.completions.create(
        model="tiny", messages=messages, response_format={"type": "json_object"}, seed=1, max_tokens=40
    )  # fmt: skip
    assert (done.choices[0].message.content or "").startswith("{")
    grammar = 'root ::= ("yes" | "no") ("!" [a-c]{2})?'
    answers = {
        client.chat.completions.create(
            model="tiny", messages=messages, seed=seed, extra_body={"grammar": grammar}
        ).choices[0].message.content
        for seed in range(20)
    }  # fmt: skip
    assert {"yes", "no"} <= {(each or "").split("!")[0] for each in answers}
    assert all((each or "").split("!")[0] in {"yes", "no"} for each in answers)


def test_a_form_does_not_change_its_neighbours(client: openai.OpenAI) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def plain(prompt: str) -> str:
        done = client.completions.create(model="t", prompt=prompt, max_tokens=60, temperature=0)
        return done.choices[0].text

    def formed(_: object) -> str:
        done = client.chat.completions.create(
            model="t",
            messages=[{"role": "user", "content": "x"}],
            response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMAS[3]}},
            seed=5,
        )  # fmt: skip
        return done.choices[0].message.content or ""

    prompts = ["a", "of the", "日本"]
    alone = [*map(plain, prompts), formed(None)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            together = [*(pool.submit(plain, each) for each in prompts), pool.submit(formed, None)]
            assert [each.result() for each in together] == alone


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (schema_form({"type": "nope"}), "response_format"),
        (schema_form({"$ref": "http://127.0.0.1/x"}), "response_format"),
        (schema_form({"type": "string", "pattern": "("}), "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        (schema_form({"x": "y" * 70_000}), "response_format"),
        ({"grammar": "root ::= (("}, "grammar"),
        ({"grammar": "root ::= other"}, "grammar"),
        ({"grammar": "x" * 70_000}, "grammar"),
        ({"grammar": 'root ::= "a"', "response_format": {"type": "json_object"}}, "grammar"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"repeat_penalty": 0}, "repeat_penalty"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [WEATHER], "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "clock"}}}, "tool_choice"),
        ({"tools": [WEATHER], "response_format": {"type": "json_object"}}, "response_format"),
    ],
)  # fmt: skip
def test_a_bad_form_is_named_and_the_next_is_served(
    client: openai.OpenAI, fields: dict[str, Any], param: str
) -> None:
    messages: Any = [{"role": "user", "content": "x"}]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="t", messages=messages, extra_body=fields)
    assert caught.value.param == param
    assert client.chat.completions.create(model="t", messages=messages, max_tokens=1).choices


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^((a+)+)+$"},
        {"type": "string", "pattern": "((a{100}){100}){100}"},
        {"type": "array", "minItems": 10**8, "items": {"type": "string"}},
        {"type": "string", "maxLength": 10**9},
        {"$ref": "#"},
        {"anyOf": [{"$ref": "#"}, {"type": "array", "items": {"$ref": "#"}}]},
        {"allOf": [{"anyOf": [{"const": f"{i}{j}"} for j in range(9)]} for i in range(9)]},
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1500)}},
    ],
    ids=["regex", "counted regex", "items", "length", "self", "recursion", "product", "wide"],
)
def test_bombs_are_served_or_refused_and_the_next_is_served(
    client: openai.OpenAI, schema: dict[str, Any]
) -> None:
    messages: Any = [{"role": "user", "content": "x"}]
    form: Any = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    try:
        client.with_options(timeout=60).chat.completions.create(
            model="t", messages=messages, response_format=form, max_tokens=20
        )
    except (openai.BadRequestError, openai.InternalServerError) as error:
        assert "cannot be followed" in str(error)
    assert client.chat.completions.create(model="t", messages=messages, max_tokens=1).choices


def test_a_tool_that_must_be_called_is(client: openai.OpenAI) -> None:
    tools: Any = [WEATHER, CLOCK]
    messages: Any = [{"role": "user", "content": "x"}]
    named: Any = {"type": "function", "function": {"name": "weather"}}
    seen = set()
    for seed, choice in enumerate([named, *["required"] * 8]):
        done = client.chat.completions.create(
            model="t", messages=messages, tools=tools, tool_choice=choice, seed=seed
        ).choices[0]
        assert done.finish_reason == "tool_calls" and done.message.content is None
        (call,) = done.message.tool_calls or []
        arguments = json.loads(call.function.arguments)
        if call.function.name == "weather":
            jsonschema.validate(arguments, WEATHER["function"]["parameters"])
        seen.add(call.function.name)
    assert seen == {"weather", "clock"}


def test_a_streamed_call_is_the_whole_one(client: openai.OpenAI) -> None:
    asked: Any = {
        "model": "t", "messages": [{"role": "user", "content": "x"}], "tools": [WEATHER],
        "tool_choice": "required", "seed": 9,
    }  # fmt: skip
    whole = client.chat.completions.create(**asked).choices[0].message.tool_calls
    chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**asked, stream=True)]
    (call,) = [c for chunk in chunks for c in chunk.delta.tool_calls or []]
    assert whole is not None and call.function is not None
    assert call.function.arguments == whole[0].function.arguments
    assert chunks[-1].finish_reason == "tool_calls"
    assert not any(chunk.delta.content for chunk in chunks)
    # What was called can be told to the model again, with what came of it.
    told: Any = [
        *asked["messages"],
        {"role": "assistant", "content": None, "tool_calls": [whole[0].model_dump()]},
        {"role": "tool", "tool_call_id": whole[0].id, "content": "21 C"},
    ]
    again = client.chat.completions.create(model="t", messages=told, tools=[WEATHER], max_tokens=5)
    assert again.choices


def test_a_websocket_calls_tools_too(client: openai.OpenAI) -> None:
    asked: Any = {
        "messages": [{"role": "user", "content": "x"}], "tools": [WEATHER],
        "tool_choice": "required", "seed": 9,
    }  # fmt: skip
    whole = client.chat.completions.create(model="t", **asked).choices[0].message.tool_calls
    address = str(client.base_url).replace("http", "ws", 1) + "chat/ws"
    with connect(address) as socket:
        socket.send(json.dumps(asked))
        said = [json.loads(socket.recv(timeout=60))]
        while said[-1]["type"] != "done":
            said.append(json.loads(socket.recv(timeout=60)))
    assert [each["type"] for each in said] == ["tool_calls", "done"]
    (call,) = said[0]["tool_calls"]
    assert whole is not None and call["function"]["arguments"] == whole[0].function.arguments
    assert said[1]["finish_reason"] == "tool_calls"


def test_a_template_without_tools_refuses_them(tmp_path: Path) -> None:
    plain = tiny_gguf.write(tmp_path / "model.gguf")
    with (
        running(plain, "--port", "0") as process,
        openai.OpenAI(base_url=f"{process.ready_url()}/v1", api_key="x", max_retries=0) as made,
        pytest.raises(openai.BadRequestError, match="template takes no tools"),
    ):
        tools: Any = [WEATHER]
        made.chat.completions.create(
            model="t", messages=[{"role": "user", "content": "x"}], tools=tools
        )


_ANSWERS = st.sampled_from([
    ("<tool_call>", "plain text"),
    ("<tool_call>", 'so <tool_call>\n{"name": "f", "arguments": {"a": "}<"}}\n</tool_call>'),
    ("<tool_call>", '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n'
                    '<tool_call>{"name": "f", "arguments": {"b": 1}}</tool_call>'),
    ("<tool_call>", 'cut <tool_call>\n{"name": "f", "argu'),
    ("<tool_call>", '<tool_call>\n{"name": "other", "arguments": {}}\n</tool_call>'),
    ("<tool_call>", "a <tool_ca and <tool"),
    ("[TOOL_CALLS]", '[TOOL_CALLS][{"name": "f", "arguments": {"x": [1, "]"]}}, {"name": "f", "arguments": {}}]'),
    ("", '{"name": "f", "parameters": {"x": 1}}'),
    ("", '{"name": "f", "x": 1}'),
    ("", " text {"),
])  # fmt: skip


@given(_ANSWERS, st.lists(st.integers(0, 200)))
def test_any_cut_gives_the_same_calls(answer: tuple[str, str], cuts: list[int]) -> None:
    opening, text = answer
    tools = Tools(({"type": "function", "function": {"name": "f"}},), must=False)

    def read(at: list[int]) -> tuple[str, list[tuple[str, Any]]]:
        reader = CallReader(notation(f"tools {opening}"), tools)
        ends = [0, *sorted(each for each in at if each < len(text)), len(text)]
        said = "".join(reader.push(text[a:b]) for a, b in pairwise(ends))
        tail, calls = reader.finish()
        return said + tail, [(call.name, json.loads(call.arguments)) for call in calls]

    assert read(cuts) == read([])
    said, calls = read([])
    assert (said == text) == (not calls)


def test_calls_are_read_out_of_each_notation() -> None:
    tools = Tools(({"type": "function", "function": {"name": "f"}},), must=False)
    wanted = [("f", {"a": "}<"})]
    for opening, text, before in (
        ("<tool_call>", 'so <tool_call>\n{"name": "f", "arguments": {"a": "}<"}}\n</tool_call>', "so "),
        ("[TOOL_CALLS]", '[TOOL_CALLS] [{"name": "f", "arguments": {"a": "}<"}}]', ""),
        ("", '{"name": "f", "parameters": {"a": "}<"}}', ""),
    ):  # fmt: skip
        reader = CallReader(notation(f"tools {opening}"), tools)
        said = reader.push(text)
        tail, calls = reader.finish()
        assert (said + tail, [(c.name, json.loads(c.arguments)) for c in calls]) == (before, wanted)
        assert isinstance(calls[0], Call) and calls[0].id.startswith("call_")
