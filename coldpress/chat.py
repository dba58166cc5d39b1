"""A chat in the terminal with a server of OpenAI's API: ours by its address, or by a checkpoint to start."""

import json
import os
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from coldpress.errors import ColdpressError, ToolError, UsageError
from coldpress.serve import sse

KEY = "COLDPRESS_API_KEY"
_READY_S = 600
_ROUTE = "/v1/chat/completions"


@dataclass
class Chat:
    """A conversation; ``say`` adds to it."""

    url: str
    key: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """Fields of every request: ``temperature``, ``max_tokens``, …"""
    messages: list[dict[str, str]] = field(default_factory=list)
    usage: dict[str, int] = field(default_factory=dict)
    """Of the last answer."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise UsageError(f"{self.url!r} is no address", "such as http://127.0.0.1:8080")

    def say(self, text: str) -> Generator[str, None, None]:
        """Say something; the pieces of the answer. What was said stays said only if it is answered.

        Raises:
            ToolError: the server cannot be reached, refuses, or breaks off.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        said = ""
        self.usage = {}
        try:
            for piece in self._pieces(asked):
                said += piece
                yield piece
        finally:
            if said:
                self.messages = [*asked, {"role": "assistant", "content": said}]

    def wait_ready(self) -> None:
        """Wait until the server's model is loaded.

        Raises:
            ToolError: it cannot be reached or does not become ready.
        """
        until = time.monotonic() + _READY_S
        while time.monotonic() < until:
            with self._asked("GET", "/v1/models", None) as response:
                if response.status == 200:
                    return
                if response.status != 503:
                    raise _refusal(response)
            time.sleep(0.1)
        raise ToolError(f"{self.url} is not ready after {_READY_S} s", "look at the server's log")

    def _pieces(self, messages: list[dict[str, str]]) -> Iterator[str]:
        body = {"messages": messages, "stream": True, "stream_options": {"include_usage": True}}
        asked: dict[str, Any] = {**self.options, **body}
        made = 0
        while True:
            cut = None
            with self._asked("POST", _ROUTE, asked) as response:
                if response.status != 200:
                    raise _refusal(response)
                for chunk in sse.chunks(response):
                    self.usage = chunk.get("usage") or self.usage
                    cut = chunk.get("resume") or cut
                    for choice in chunk["choices"]:
                        if piece := choice["delta"].get("content"):
                            yield piece
            made, before = self.usage.get("completion_tokens", 0), made
            if cut is None:
                return
            if made == before:
                raise ToolError("the server makes no token in its time", "shorten the conversation")
            # Its time was up: this server, or another instance of it, goes on where it was.
            asked["resume"] = cut

    @contextmanager
    def _asked(self, method: str, path: str, body: Any) -> Iterator[HTTPResponse]:
        parts = urlsplit(self.url)
        make = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        connection = make(parts.hostname or "", parts.port, timeout=_READY_S)
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        try:
            sent = None if body is None else json.dumps(body).encode()
            connection.request(method, parts.path.rstrip("/") + path, sent, headers)
            yield connection.getresponse()
        except (OSError, HTTPException, ValueError) as error:
            raise ToolError(f"{self.url}: {error}", "is the server running there?") from error
        finally:
            connection.close()


def _refusal(response: HTTPResponse) -> ColdpressError:
    try:
        message = str(json.loads(response.read(1 << 16))["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"HTTP status {response.status}"
    hint = f"set {KEY}" if response.status == 401 else "change the message, or try again"
    return ToolError(f"the server refuses: {message}", hint)


@contextmanager
def at(where: str) -> Iterator[Chat]:
    """A chat with a server by its address, or with a checkpoint that is served for as long.

    The server's API key is that of the environment: a command line is read by every user.

    Raises:
        ToolError: it cannot be reached or started.
    """
    if where.startswith(("http://", "https://")):
        yield Chat(where, os.environ.get(KEY))
        return
    from coldpress.serve.cold_runtime import started
    from coldpress.serve.load.place import locate

    locate(where)  # what is wrong with it is said here, not by a process that ends
    with started(where, ["--quiet", "--parallel", "1"]) as runtime:
        yield Chat(f"http://127.0.0.1:{runtime.event('listening')['port']}")


def talk(chat: Chat, system: str | None) -> None:
    """Read lines and print answers until the input ends; Ctrl-C stops an answer."""
    if system:
        chat.messages = [{"role": "system", "content": system}]
    chat.wait_ready()
    by_hand = sys.stdin.isatty()
    if by_hand:
        import readline  # noqa: F401  # gives input() its history and its keys

        print("Ctrl-C stops an answer, Ctrl-D ends.", file=sys.stderr)
    while True:
        try:
            text = input("> " if by_hand else "").strip()
        except EOFError:
            return
        if text:
            _print(chat, text, by_hand=by_hand)


def _print(chat: Chat, text: str, *, by_hand: bool) -> None:
    first = last = 0.0
    began = time.monotonic()
    pieces = chat.say(text)
    try:
        for piece in pieces:
            last = time.monotonic()
            first = first or last
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        pieces.close()
    except ToolError as error:
        if not by_hand:
            raise
        print(f"error: {error.message}\n hint: {error.hint}", file=sys.stderr)
        return
    print()
    count = chat.usage.get("completion_tokens", 0)
    if by_hand and count > 1 and last > first:
        rate = (count - 1) / (last - first)
        told = f"{count} tokens, the first after {first - began:.2f} s, then {rate:.1f} tokens/s"
        print(f"\x1b[2m{told}\x1b[0m", file=sys.stderr)
