"""The Lambda front, driven by a Runtime API that really streams."""

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

from coldpress.errors import ColdpressError
from coldpress.serve.aws import front as aws_lambda
from coldpress.serve.aws.runtime_api import FunctionError, RuntimeApi
from coldpress.serve.aws.runtime_server import Cut, RuntimeServer, serving
from coldpress.serve.engine import Engine
from coldpress.serve.options import EngineOptions
from coldpress.serve.trace import Trace
from tests import tiny_gguf
from tests.lambda_calls import Answer, collect, invoke, send
from tests.runtime_process import RuntimeProcess, running

ENDLESS = {"prompt": "the", "max_tokens": 500_000, "stream": True, "temperature": 0}
SHORT = {"prompt": "the", "max_tokens": 8, "temperature": 0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "model.gguf"
    return tiny_gguf.write(path, context=1 << 20)


@pytest.fixture(scope="module")
def api(model: Path) -> Iterator[RuntimeServer]:
    with serving() as api:
        env = {"AWS_LAMBDA_RUNTIME_API": api.address}
        with running(model, "--context", "600000", **env):
            yield api


def _function_url(body: Any, path: str = "/v1/completions", method: str = "POST") -> dict[str, Any]:
    return {
        "version": "2.0",
        "rawPath": path,
        "requestContext": {
            "domainName": "abc.lambda-url.eu-central-1.on.aws",
            "http": {"method": method, "path": path},
        },
        "body": base64.b64encode(json.dumps(body).encode()).decode(),
        "isBase64Encoded": True,
    }


def _http_api(body: Any, path: str = "/v1/completions") -> dict[str, Any]:
    event = _function_url(body, path)
    event["requestContext"]["domainName"] = "abc.execute-api.eu-central-1.amazonaws.com"
    return {**event, "body": json.dumps(body), "isBase64Encoded": False}


def _prelude(posted: Answer) -> tuple[dict[str, Any], bytes]:
    head, _, body = posted.body.partition(b"\0" * 8)
    assert posted.headers["Content-Type"] == "application/vnd.awslambda.http-integration-response"
    return json.loads(head), body


def _events(body: bytes) -> list[Any]:
    lines = [line[6:] for line in body.decode().split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_a_function_url_streams(api: RuntimeServer) -> None:
    posted = invoke(api, _function_url({**ENDLESS, "max_tokens": 2000}))
    assert posted.headers["Lambda-Runtime-Function-Response-Mode"] == "streaming"
    prelude, body = _prelude(posted)
    assert prelude["statusCode"] == 200
    assert prelude["headers"]["Content-Type"] == "text/event-stream"
    assert _events(body)[-1]["choices"][0]["finish_reason"] == "length"
    assert posted.failure is None
    # Pieces come while later ones are still being made.
    first_s, last_s = posted.chunks[1][0], posted.chunks[-1][0]
    assert len(posted.chunks) > 1000
    assert last_s - first_s > 0.05


def test_all_callers_get_the_same_answer(api: RuntimeServer) -> None:
    direct = json.loads(invoke(api, SHORT).body)["choices"]
    assert direct[0]["finish_reason"] == "length"
    prelude, body = _prelude(invoke(api, _function_url(SHORT)))
    assert prelude["headers"] == {"Content-Type": "application/json"}
    assert json.loads(body)["choices"] == direct
    gateway = json.loads(invoke(api, _http_api(SHORT)).body)
    assert gateway["statusCode"] == 200
    assert json.loads(gateway["body"])["choices"] == direct
    pieces = _events(invoke(api, {**SHORT, "stream": True}).body)
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == direct[0]["text"]
    buffered = json.loads(invoke(api, _http_api({**SHORT, "stream": True})).body)
    assert _events(buffered["body"].encode())[-1]["choices"][0]["finish_reason"] == "length"


def test_a_direct_invocation_chats(api: RuntimeServer) -> None:
    event = {"messages": [{"role": "user", "content": "the sea"}], "max_tokens": 5}
    answer = json.loads(invoke(api, event).body)
    assert answer["object"] == "chat.completion"
    assert answer["usage"]["completion_tokens"] == 5


@pytest.mark.parametrize(
    ("body", "path", "method", "status"),
    [
        ({"prompt": "x", "temperature": 9}, "/v1/completions", "POST", 400),
        ({"messages": []}, "/v1/chat/completions", "POST", 400),
        (None, "/v1/models", "GET", 200),
        (None, "/readyz", "GET", 200),
        (None, "/secret", "GET", 404),
    ],
)
def test_routes_and_errors_are_those_of_http(
    api: RuntimeServer, body: Any, path: str, method: str, status: int
) -> None:
    prelude, answer = _prelude(invoke(api, _function_url(body, path, method)))
    assert prelude["statusCode"] == status
    assert ("error" in json.loads(answer)) == (status >= 400)


@pytest.mark.parametrize("event", [None, 3, [], {}, {"requestContext": 3}, {"prompt": 3}])
def test_a_bad_event_is_a_function_error_and_the_next_is_served(
    api: RuntimeServer, event: Any
) -> None:
    posted = invoke(api, event)
    assert posted.body == b"" and posted.failure is not None
    assert posted.failure.message and posted.failure.type.startswith("Coldpress.")
    assert invoke(api, SHORT).failure is None


def test_an_answer_ends_before_the_deadline(api: RuntimeServer) -> None:
    began_s = time.time()
    posted = invoke(api, _function_url(ENDLESS), seconds=2)
    assert 0.5 < time.time() - began_s < 2
    assert _events(_prelude(posted)[1])[-1]["choices"][0]["finish_reason"] == "length"
    whole = json.loads(invoke(api, {**ENDLESS, "stream": False}, seconds=2).body)
    assert whole["choices"][0]["finish_reason"] == "length"
    assert 0 < whole["usage"]["completion_tokens"] < 500_000


def test_a_caller_who_leaves_is_forgotten(api: RuntimeServer) -> None:
    gone = FunctionError("Caller.Gone", "the caller hung up")
    posted = invoke(api, _function_url(ENDLESS), cut=Cut(5, lambda: gone))
    assert len(posted.chunks) == 5 and posted.failure == gone
    assert invoke(api, SHORT).failure is None


def test_an_error_under_way_travels_in_the_trailers(model: Path) -> None:
    engine = Engine(model, EngineOptions(context=600_000, parallel=1, threads=1), Trace())
    engine.start()

    def run(address: str) -> None:
        with suppress(OSError, HTTPException):  # the fake goes away at the end
            aws_lambda.run(engine, RuntimeApi(address))

    with serving() as api:
        thread = threading.Thread(target=run, args=(api.address,), daemon=True)
        thread.start()
        call = send(api, _function_url(ENDLESS))
        assert engine.wait(30)
        pieces = call.pieces()
        assert b"text/event-stream" in next(pieces) and b"data: " in next(pieces)
        engine.close()
        assert b"the server is stopping" in b"".join(pieces)
    assert call.failure == FunctionError("Coldpress.engine_failed", "the server is stopping")


def _slow_engine(model: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Engine, threading.Event]:
    """An engine whose load waits for an event."""
    gate = threading.Event()
    load = Engine._load

    def late(self: Engine) -> None:
        gate.wait(60)
        load(self)

    monkeypatch.setattr(Engine, "_load", late)
    monkeypatch.setattr(aws_lambda, "_HEARTBEAT_S", 0.05)
    return Engine(model, EngineOptions(parallel=1, threads=1), Trace()), gate


def _answering(engine: Engine, address: str) -> threading.Thread:
    def run() -> None:
        with suppress(OSError, HTTPException, ColdpressError):  # the fake goes away at the end
            aws_lambda.run(engine, RuntimeApi(address))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_a_stream_beats_while_the_model_is_loading(
    model: Path, monkeypatch: pytest.MonkeyPatch, api: RuntimeServer
) -> None:
    expected = _events(_prelude(invoke(api, _function_url({**SHORT, "stream": True})))[1])
    engine, gate = _slow_engine(model, monkeypatch)
    engine.start()
    with serving() as fake:
        _answering(engine, fake.address)
        call = send(fake, _function_url({**SHORT, "stream": True}))
        threading.Timer(0.4, gate.set).start()
        posted = collect(call)
        # What is wrong with a request is said at once, as ever.
        refused = invoke(fake, _function_url({"prompt": 3, "stream": True}))
    engine.close()
    prelude, body = _prelude(posted)
    beats, rest = body.count(b": loading\n\n"), body.replace(b": loading\n\n", b"")
    assert prelude["statusCode"] == 200 and beats >= 3
    texts = [[e["choices"][0]["text"] for e in events] for events in (_events(rest), expected)]
    assert texts[0] == texts[1] and texts[0]
    assert posted.failure is None
    assert _prelude(refused)[0]["statusCode"] == 400


def test_a_stream_whose_model_does_not_come_says_so(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, gate = _slow_engine(model, monkeypatch)
    engine.start()
    with serving() as fake:
        _answering(engine, fake.address)
        posted = invoke(fake, _function_url({**SHORT, "stream": True}), seconds=1.5)
        gate.set()
        assert engine.wait(60)
        # The next one is served, and no heartbeat is needed.
        served = invoke(fake, _function_url({**SHORT, "stream": True}))
    engine.close()
    error = json.loads(_prelude(posted)[1].rsplit(b"data: ", 1)[1])
    assert error["error"]["code"] == "loading"
    assert posted.failure is not None and posted.failure.type == "Coldpress.loading"
    assert b": loading" not in _prelude(served)[1]


def test_each_answer_is_a_line_of_metrics(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = Engine(model, EngineOptions(parallel=1, threads=1), Trace())
    engine.start()
    assert engine.wait(60)
    with serving() as fake:
        _answering(engine, fake.address)
        usage = json.loads(invoke(fake, {**SHORT}).body)["usage"]
        invoke(fake, {"prompt": 3})
        invoke(fake, _function_url({**SHORT, "stream": True}))
    engine.close()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 2
    for line, request in zip(lines, ("request-1", "request-3"), strict=True):
        (declared,) = line["_aws"]["CloudWatchMetrics"]
        assert declared["Namespace"] == "coldpress" and declared["Dimensions"] == [["Model"]]
        named = {each["Name"] for each in declared["Metrics"]}
        assert named <= line.keys() and {"FirstTokenMs", "DurationMs"} <= named
        assert (line["Model"], line["RequestId"]) == ("tiny", request)
        assert line["PromptTokens"] == usage["prompt_tokens"]
        assert line["CompletionTokens"] == 8 and line["FirstTokenMs"] <= line["DurationMs"]


def test_what_cannot_start_is_an_init_error(tmp_path: Path) -> None:
    with serving() as api:
        process = RuntimeProcess(tmp_path, AWS_LAMBDA_RUNTIME_API=api.address)
        assert process.wait() == 5
    assert api.init_failure is not None
    assert "model.gguf" in api.init_failure.message
    assert [line[:6] for line in process.lines] == ["error:", " hint:"]


def test_a_model_that_cannot_be_loaded_ends_the_environment(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(model.read_bytes()[:-5000])
    with serving() as api:
        call = send(api, _http_api(SHORT))
        process = RuntimeProcess(path, AWS_LAMBDA_RUNTIME_API=api.address)
        assert process.wait() == 12
    if api.init_failure is None:  # the first event was faster than the load
        assert json.loads(collect(call).body)["statusCode"] == 503
