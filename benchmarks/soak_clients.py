"""What the soak's clients do with an answer: read it, read it slowly, leave in the middle, or use a WebSocket."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from typing import Any

from websockets.sync.client import connect
from websockets.typing import Subprotocol

from benchmarks.soak_requests import CHAT, Case, Malformed
from coldpress.serve import sse

_TIMEOUT_S = 120
_SLOW_BUFFER = 4096
_SLOW_S = 0.02


@dataclass(frozen=True)
class Outcome:
    """What was answered, whatever way it came; ``calls``: names and arguments of tools."""

    text: str
    calls: tuple[tuple[str, str], ...]
    reason: str


class RefusedError(Exception):
    """Another status than 200."""

    def __init__(self, status: int, retry_after: str | None, said: bytes) -> None:
        super().__init__(f"status {status}: {said[:200]!r}")
        self.status = status
        self.retry_after = retry_after


@dataclass(frozen=True)
class Client:
    """Speaks to one server."""

    port: int
    key: str

    def whole(self, case: Case) -> Outcome:
        """Ask for the answer in one piece."""
        with self._posted(case, {}) as response:
            (choice,) = json.loads(response.read())["choices"]
        message = choice.get("message") or {"content": choice["text"]}
        calls = tuple(_call(each) for each in message.get("tool_calls") or ())
        return Outcome(message["content"] or "", calls, choice["finish_reason"])

    def streamed(self, case: Case, *, slow: bool = False) -> Outcome:
        """Read a stream to its end; ``slow``: a line at a time, with a small buffer and pauses."""
        with self._posted(case, {"stream": True}, slow=slow) as response:
            return _gather(_paused(response) if slow else response)

    def cancelled(self, case: Case, pieces: int) -> str:
        """Read so many pieces of text, and hang up; what was said until then."""
        text = ""
        with self._posted(case, {"stream": True}) as response:
            for chunk in sse.chunks(response):
                for choice in chunk["choices"]:
                    piece = _text(choice)
                    text += piece
                    pieces -= bool(piece)
                if pieces <= 0:
                    break
        return text

    def over_websocket(self, case: Case) -> Outcome:
        """A chat's answer over a WebSocket."""
        text = ""
        calls: tuple[tuple[str, str], ...] = ()
        url = f"ws://127.0.0.1:{self.port}/v1/chat/ws"
        offered = [Subprotocol("bearer"), Subprotocol(self.key)]
        with connect(url, subprotocols=offered) as chat:
            chat.send(json.dumps(case.body))
            while True:
                said: dict[str, Any] = json.loads(chat.recv(timeout=_TIMEOUT_S))
                match said["type"]:
                    case "delta":
                        text += said["text"]
                    case "tool_calls":
                        calls = tuple(_call(each) for each in said["tool_calls"])
                    case "done":
                        return Outcome(text, calls, said["finish_reason"])
                    case _:
                        full = said["error"]["code"] == "queue_full"
                        # A WebSocket has no Retry-After: its error says the same.
                        raise RefusedError(429 if full else 500, "1", json.dumps(said).encode())

    def malformed(self, bad: Malformed) -> int:
        """The status that a bad request gets."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=_TIMEOUT_S)
        try:
            connection.request(bad.method, bad.path, bad.body, self._headers() if bad.key else {})
            return connection.getresponse().status
        finally:
            connection.close()

    def get(self, path: str, body: object = None) -> bytes:
        """Another route's answer."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=_TIMEOUT_S)
        try:
            data = None if body is None else json.dumps(body)
            connection.request("POST" if data else "GET", path, data, self._headers())
            return connection.getresponse().read()
        finally:
            connection.close()

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}

    @contextmanager
    def _posted(
        self, case: Case, more: dict[str, Any], *, slow: bool = False
    ) -> Iterator[HTTPResponse]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=_TIMEOUT_S)
        if slow:
            connection.sock = _narrow(self.port)
        try:
            connection.request("POST", case.path, json.dumps(case.body | more), self._headers())
            response = connection.getresponse()
            if response.status != 200:
                retry_after = response.headers.get("Retry-After")
                raise RefusedError(response.status, retry_after, response.read())
            with response:
                yield response
        finally:
            connection.close()


def is_chat(case: Case) -> bool:
    """Whether a WebSocket can ask it."""
    return case.path == CHAT and case.kind != "logprobs"


def _narrow(port: int) -> socket.socket:
    """A connection that takes little at once, so that the server has to wait for its reader."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SLOW_BUFFER)
    made.settimeout(_TIMEOUT_S)
    made.connect(("127.0.0.1", port))
    return made


def _paused(response: HTTPResponse) -> Iterator[bytes]:
    for line in response:
        yield line
        time.sleep(_SLOW_S)


def _gather(lines: Any) -> Outcome:
    text, reason = "", ""
    calls: list[tuple[str, str]] = []
    for chunk in sse.chunks(lines):
        for choice in chunk["choices"]:
            text += _text(choice)
            calls += [_call(each) for each in choice.get("delta", {}).get("tool_calls") or ()]
            reason = choice["finish_reason"] or reason
    return Outcome(text, tuple(calls), reason)


def _text(choice: dict[str, Any]) -> str:
    return choice.get("text") or choice.get("delta", {}).get("content") or ""


def _call(call: dict[str, Any]) -> tuple[str, str]:
    return call["function"]["name"], call["function"]["arguments"]
