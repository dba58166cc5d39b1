"""How a server ends: by SIGTERM with every stream finished, by a dead engine with a reason and a code."""

import asyncio
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect

from coldpress.serve.api.http import HttpOptions, build_app
from coldpress.serve.api.timed import Closing
from coldpress.serve.engine import Engine
from coldpress.serve.generation import Delta, Event, Failed
from coldpress.serve.options import EngineOptions
from coldpress.serve.sampling import GenerateOptions
from coldpress.serve.trace import Trace
from tests import tiny_gguf
from tests.runtime_process import RuntimeProcess

LONG: Any = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2000, "temperature": 0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("end") / "model.gguf", context=1 << 20)


def _server_sent(url: str, begun: threading.Event) -> tuple[str, str]:
    """The text of a streamed chat and why it ended."""
    text, reason = "", ""
    body = {**LONG, "stream": True}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                begun.set()
                (choice,) = json.loads(line[6:])["choices"]
                text += choice["delta"].get("content", "")
                reason = choice["finish_reason"] or reason
    return text, reason


def _websocket(url: str, begun: threading.Event) -> tuple[str, str]:
    """The same over a WebSocket, which is then closed properly."""
    text = ""
    with connect(url.replace("http", "ws") + "/v1/chat/ws") as socket:
        socket.send(json.dumps(LONG))
        while (event := json.loads(socket.recv(timeout=60)))["type"] == "delta":
            begun.set()
            text += event["text"]
        with pytest.raises(ConnectionClosedError) as closed:
            socket.recv(timeout=60)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1012
    return text, event["finish_reason"]


@pytest.mark.parametrize("stream", [_server_sent, _websocket])
def test_sigterm_finishes_every_stream(
    model: Path, stream: Callable[[str, threading.Event], tuple[str, str]]
) -> None:
    process = RuntimeProcess(model, "--port", "0", "--quiet", "--parallel", "3")
    url = process.ready_url()
    whole = httpx.post(f"{url}/v1/chat/completions", json=LONG, timeout=60).json()["choices"][0]
    begun = [threading.Event() for _ in range(3)]
    got: list[tuple[str, str]] = []
    threads = [
        threading.Thread(target=lambda each=each: got.append(stream(url, each))) for each in begun
    ]
    for thread in threads:
        thread.start()
    assert all(each.wait(60) for each in begun)
    assert process.stop() == 0
    for thread in threads:
        thread.join(60)
    assert got == [(whole["message"]["content"], "length")] * 3


def test_sigterm_does_not_wait_for_a_websocket_that_says_nothing(model: Path) -> None:
    process = RuntimeProcess(model, "--port", "0", "--quiet")
    url = process.ready_url()
    with connect(url.replace("http", "ws") + "/v1/chat/ws") as socket:
        process.process.terminate()
        with pytest.raises(ConnectionClosedError):
            socket.recv(timeout=60)
    assert process.wait() == 0


_FAILING = """
import sys
from coldpress import libllama
lib = libllama.load()
decode, calls = lib.llama_decode, 0
def failing(*arguments):
    global calls
    calls += 1
    return decode(*arguments) if calls < 100 else {outcome}
lib.llama_decode = failing
from coldpress.serve.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [("-3", "llama_decode failed: -3"), ("1 / 0", "the engine stopped: ZeroDivisionError")],
)
def test_a_dead_engine_ends_the_process(model: Path, outcome: str, reason: str) -> None:
    program = _FAILING.format(outcome=outcome)
    process = RuntimeProcess(model, "--port", "0", "--quiet", program=program)
    url = process.ready_url()
    body = {**LONG, "stream": True}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert reason in json.loads(lines[-1][6:])["error"]["message"]
    assert process.wait() == 1
    said = [line for line in process.lines if not line.startswith("{")]
    assert reason in said[0] and [line[:6] for line in said] == ["error:", " hint:"]


def _submit(engine: Engine, max_tokens: int) -> tuple[list[Event], threading.Event]:
    events: list[Event] = []
    ended = threading.Event()

    def emit(event: Event) -> None:
        events.append(event)
        if not isinstance(event, Delta):
            ended.set()

    engine.submit([1, 5, 6], GenerateOptions(max_tokens=max_tokens, temperature=0), emit)
    return events, ended


def _asked(engine: Engine, path: str) -> httpx.Response:
    async def get() -> httpx.Response:
        transport = httpx.ASGITransport(app=build_app(engine, HttpOptions(), Closing()))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.get(path)

    # A browser of other tests may have a loop in this thread.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(get())).result()


@pytest.mark.parametrize("status", [-3, -2, -1, 1])
def test_readyz_tells_why_a_dead_engine_is_dead(
    model: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    engine = Engine(model, EngineOptions(parallel=2, threads=1), Trace())
    told = threading.Event()
    engine.on_failure = told.set
    engine.start()
    assert engine.wait(60)
    assert _asked(engine, "/readyz").status_code == 200
    monkeypatch.setattr(engine.model.lib, "llama_decode", lambda *_: status)
    events, ended = _submit(engine, 5)
    assert ended.wait(60) and isinstance(events[-1], Failed)
    monkeypatch.undo()
    if status < -1:
        assert told.wait(60)
        answer = _asked(engine, "/readyz")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "load_failed")
        assert f"llama_decode failed: {status}" in answer.json()["error"]["message"]
        assert _asked(engine, "/healthz").status_code == 200  # it lives, to be asked why
    else:
        # Only that request was wrong; the next is served.
        events, ended = _submit(engine, 5)
        assert ended.wait(60) and len(events) > 1 and not isinstance(events[-1], Failed)
        assert _asked(engine, "/readyz").status_code == 200
    engine.close()
