"""The Lambda emulator: the real command with real clients, and what Lambda does to a runtime."""

import base64
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from coldpress.serve.api.listen import listen
from coldpress.serve.aws import emulator, function_url
from coldpress.serve.aws.emulator import Fault, Lambda
from coldpress.serve.aws.runtime_api import HTTP_INTEGRATION, FunctionError
from coldpress.serve.aws.runtime_server import Call
from coldpress.serve.trace import Trace
from tests import tiny_gguf
from tests.runtime_process import RuntimeProcess, running

SHORT: Any = {"prompt": "the", "max_tokens": 8, "temperature": 0}
ENDLESS: Any = {"prompt": "the", "max_tokens": 500_000, "temperature": 0, "stream": True}
INVOKE = "/2015-03-31/functions/function/invocations"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("tiny") / "model.gguf", context=1 << 20)


def _stat(pid: int) -> list[str]:
    """A process's state, its parent, …"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


class Emulator:
    """``coldpress serve --emulate-lambda`` under test."""

    def __init__(self, process: RuntimeProcess) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{process.event('listening')['port']}"

    def post(self, body: Any, path: str = "/v1/completions") -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=60)

    def invocation(self) -> dict[str, Any]:
        """The line of the next invocation that has ended."""
        while (event := self.process.next_event())["event"] != "invocation":
            pass
        return event

    @property
    def child(self) -> int:
        """The runtime's process id."""
        parent = str(self.process.process.pid)
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended meanwhile
                found += [int(path.name)] * (_stat(int(path.name))[1] == parent)
        (pid,) = found
        return pid


@contextmanager
def emulating(model: Path, *arguments: str) -> Iterator[Emulator]:
    extra = ("--port", "0", "--context", "600000", "--emulate-lambda", *arguments)
    with running(model, *extra) as process:
        yield Emulator(process)


@pytest.fixture(scope="module")
def lambda_(model: Path) -> Iterator[Emulator]:
    with emulating(model) as emulator:
        yield emulator


def test_the_openai_client_streams_and_each_invocation_is_a_line(lambda_: Emulator) -> None:
    asked: Any = {"model": "t", "prompt": "the", "max_tokens": 40, "temperature": 0}
    with openai.OpenAI(base_url=f"{lambda_.url}/v1", api_key="x", max_retries=0) as client:
        pieces = [each.choices[0].text for each in client.completions.create(**asked, stream=True)]
        whole = client.completions.create(**asked)
        with pytest.raises(openai.BadRequestError) as bad:
            client.completions.create(model="t", prompt="x", temperature=9)
    assert len(pieces) > 5 and "".join(pieces) == whole.choices[0].text
    assert bad.value.param == "temperature"
    lines = [lambda_.invocation() for _ in range(3)]
    assert [(line["status"], line["cold"]) for line in lines] == [
        (200, True),
        (200, False),
        (400, False),
    ]
    assert all(0 < line["first_byte_ms"] <= line["total_ms"] for line in lines)


def test_a_direct_invocation_is_the_runtimes_own_answer(lambda_: Emulator) -> None:
    direct = lambda_.post(SHORT, INVOKE)
    assert direct.json()["choices"] == lambda_.post(SHORT).json()["choices"]
    failed = lambda_.post({"prompt": 3}, INVOKE)
    assert (failed.status_code, failed.headers["X-Amz-Function-Error"]) == (200, "Unhandled")
    assert failed.json()["errorType"] == "Coldpress.invalid_value"
    for bad in (b"\xff{", b"[" * 100_000):
        broken = httpx.post(lambda_.url + INVOKE, content=bad)
        assert broken.json()["errorType"] == "Coldpress.BadEvent"
    assert lambda_.post(SHORT).status_code == 200


def test_a_body_that_lambda_does_not_take_is_413(lambda_: Emulator) -> None:
    with socket.create_connection(("127.0.0.1", int(lambda_.url.rpartition(":")[2]))) as raw:
        raw.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999999\r\n\r\n"
        )
        assert raw.recv(100).startswith(b"HTTP/1.1 413")
    pieces = (json.dumps({**SHORT, "max_tokens": 3}).encode(), b" " * 1000)
    chunked = httpx.post(f"{lambda_.url}/v1/completions", content=iter(pieces))
    assert chunked.json()["usage"]["completion_tokens"] == 3


def test_a_client_who_leaves_does_not_stop_the_function(model: Path) -> None:
    with emulating(model, "--lambda-timeout", "3") as emulator:
        with httpx.stream("POST", f"{emulator.url}/v1/completions", json=ENDLESS) as response:
            next(response.iter_bytes())
        assert emulator.post(SHORT).status_code == 200
        left, served = emulator.invocation(), emulator.invocation()
    # It was paid for until its deadline, and the next one had to wait.
    assert left["status"] == 499 and left["total_ms"] > 1000 and "error" not in left
    assert (served["status"], served["cold"]) == (200, False)


@pytest.mark.parametrize(
    ("fault", "error", "cold"),
    [("hang-up:5", "Caller.Gone", False), ("kill:5", "Runtime.ExitError", True)],
)
def test_a_fault_under_way_breaks_the_stream_and_the_next_is_served(
    model: Path, fault: str, error: str, cold: bool
) -> None:
    with emulating(model, "--lambda-fault", fault) as emulator:
        got = b""
        with (
            httpx.stream("POST", f"{emulator.url}/v1/completions", json=ENDLESS) as response,
            pytest.raises(httpx.RemoteProtocolError),
        ):
            for piece in response.iter_bytes():
                got += piece
        # The first chunk is the prelude.
        assert got.count(b"data: ") == 4 and b"[DONE]" not in got
        assert emulator.post(SHORT).status_code == 200
        broken, served = emulator.invocation(), emulator.invocation()
    assert (broken["status"], broken["error"]) == (200, error)
    assert served["cold"] == cold and "error" not in served


def test_a_short_deadline_ends_the_answer_in_time(model: Path) -> None:
    with emulating(model, "--lambda-fault", "deadline:2") as emulator:
        with httpx.stream("POST", f"{emulator.url}/v1/completions", json=ENDLESS) as response:
            body = response.read()
        assert body.endswith(b"data: [DONE]\n\n") and b'"finish_reason":"length"' in body
        assert "error" not in emulator.invocation()


def test_the_runtime_is_frozen_between_invocations(model: Path) -> None:
    with emulating(model, "--lambda-fault", "freeze:1") as emulator:
        for cold in (True, False, False):
            assert emulator.post(SHORT).json()["usage"]["completion_tokens"] == 8
            assert emulator.invocation()["cold"] == cold
            assert _stat(emulator.child)[0] == "T"


def test_a_runtime_that_dies_is_started_anew_and_ends_with_the_emulator(model: Path) -> None:
    with emulating(model) as emulator:
        first = emulator.post(SHORT).json()["choices"]
        child = emulator.child
        os.kill(child, signal.SIGKILL)
        assert emulator.invocation()["cold"]
        # A request that still meets the dying one gets what Lambda says then.
        while (answer := emulator.post(SHORT)).status_code == 502:
            assert not emulator.invocation()["cold"]
        assert answer.json()["choices"] == first
        assert emulator.invocation()["cold"]
        child = emulator.child
    assert emulator.process.process.returncode == 0
    assert not Path(f"/proc/{child}").exists()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--lambda-fault", "kill"), 2),
        (("--lambda-fault", "none:3"), 2),
        (("--lambda-fault", "kill:-1"), 2),
        (("--lambda-fault", "rain:3"), 2),
        (("--lambda-timeout", "901"), 2),
        (("--lambda-timeout", "nan"), 2),
    ],
)
def test_a_wrong_command_line_is_two_lines(
    model: Path, arguments: tuple[str, ...], code: int
) -> None:
    process = RuntimeProcess(model, "--emulate-lambda", "--port", "0", *arguments)
    assert process.wait() == code
    assert [line[:6] for line in process.lines] == ["error:", " hint:"]


def test_a_missing_model_is_said_at_once(tmp_path: Path) -> None:
    process = RuntimeProcess(tmp_path, "--emulate-lambda", "--port", "0")
    assert process.wait() == 5


def _runtime(tmp_path: Path, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put another program in our runtime's place."""
    path = tmp_path / "runtime"
    path.write_text("#!/usr/bin/env python3\n" + program)
    path.chmod(0o755)
    monkeypatch.setattr(emulator.sys, "executable", str(path))


_ASKS = """
import os, http.client, time
api = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
api.request("GET", "/2018-06-01/runtime/invocation/next")
api.getresponse().read()
"""


@pytest.mark.parametrize(
    ("program", "kind", "message"),
    [
        (_ASKS + "time.sleep(60)", "Sandbox.Timedout", "Task timed out after 1.00 seconds"),
        (_ASKS + "os._exit(3)", "Runtime.ExitError", "Runtime exited with error: exit status 3"),
        (
            "import os; os.abort()",
            "Runtime.ExitError",
            "Runtime exited with error: signal: SIGABRT",
        ),
        ("import time; time.sleep(60)", "Sandbox.Timedout", "Task timed out after 1.00 seconds"),
    ],
    ids=["too slow", "exits", "crashes", "never asks"],
)
def test_what_becomes_of_a_bad_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, kind: str, message: str
) -> None:
    _runtime(tmp_path, program, monkeypatch)
    monkeypatch.setattr(emulator, "_INIT_S", 2)
    function = Lambda([], 1, Fault())
    for _ in range(2):
        with function.invoke(b"{}") as (call, cold):
            assert cold and list(call.pieces()) == []
        assert call.failure == FunctionError(kind, message)
    function.close()


class _Echo(Lambda):
    """A function that answers what it is told to, and keeps its events."""

    def __init__(self, *pieces: bytes, kind: str = HTTP_INTEGRATION) -> None:
        self.events: list[Any] = []
        self._pieces = pieces
        self._kind = kind

    @contextmanager
    def invoke(self, event: bytes) -> Iterator[tuple[Call, bool]]:
        self.events.append(json.loads(event))
        call = Call("request-1", event, 60, None)
        call.headers["Content-Type"] = self._kind
        call.deliver()
        for piece in self._pieces:
            call.put(piece)
        call.end()
        yield call, False

    def close(self) -> None:
        pass


@contextmanager
def _url_of(function: Lambda) -> Iterator[str]:
    with listen("127.0.0.1", 0) as bound:
        server = function_url.Server(function, bound, Trace())
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        server.shutdown()
        thread.join()


def test_a_request_becomes_an_event_of_format_2() -> None:
    function = _Echo(b'{"statusCode": 200}' + b"\0" * 8)
    with _url_of(function) as url:
        headers = {"X-Two": "a", "User-Agent": "me", "Cookie": "k=v"}
        httpx.request("PATCH", f"{url}/a%20b?x=1&x=2", content="déjà", headers=headers)
        httpx.post(url, content=b"\xff\0")
    event, binary = function.events
    context = event.pop("requestContext")
    assert event["headers"].pop("x-two") == "a" and event.pop("headers")["cookie"] == "k=v"
    assert event == {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": "/a%20b",
        "rawQueryString": "x=1&x=2",
        "body": "déjà",
        "isBase64Encoded": False,
    }
    assert context["domainName"].endswith(".lambda-url.us-east-1.on.aws")
    assert context["http"] == {
        "method": "PATCH",
        "path": "/a%20b",
        "protocol": "HTTP/1.1",
        "sourceIp": "127.0.0.1",
        "userAgent": "me",
    }
    assert base64.b64decode(binary["body"]) == b"\xff\0" and binary["isBase64Encoded"]


@pytest.mark.parametrize("cut", [1, 20, 64, 66])
def test_the_prelude_may_come_in_any_pieces(cut: int) -> None:
    head = {"statusCode": 418, "headers": {"X-A": "b", "Content-Length": "9"}, "cookies": ["c=d"]}
    whole = json.dumps(head).encode() + b"\0" * 8 + b"tea\0pot"
    with _url_of(_Echo(whole[:cut], whole[cut:])) as url:
        answer = httpx.get(url)
    assert (answer.status_code, answer.content) == (418, b"tea\0pot")
    assert answer.headers["X-A"] == "b" and answer.headers["Set-Cookie"] == "c=d"


def test_an_answer_that_is_no_stream_is_json_of_status_and_body() -> None:
    told = {"statusCode": 201, "body": base64.b64encode(b"\xff").decode(), "isBase64Encoded": True}
    with _url_of(_Echo(json.dumps(told).encode(), kind="application/json")) as url:
        answer = httpx.get(url)
    assert (answer.status_code, answer.content) == (201, b"\xff")


@pytest.mark.parametrize("answer", [b"", b"{}", b"no\0\0\0\0\0\0\0\0", b"x" * 20_000])
def test_an_answer_without_a_prelude_is_502(answer: bytes) -> None:
    with _url_of(_Echo(answer)) as url:
        assert httpx.get(url).status_code == 502


def test_old_and_bare_requests_are_answered() -> None:
    with _url_of(_Echo(b'{"statusCode": 200}' + b"\0" * 8, b"one", b"two")) as url:
        assert httpx.head(url).content == b""
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        with socket.create_connection(address) as raw, raw.makefile("rb") as answer:
            raw.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert answer.read().endswith(b"\r\n\r\nonetwo")
