"""The other end of Lambda's Runtime API: gives a runtime its events and passes each answer on as it comes.

AWS's own emulator buffers the answer and drops the trailers.

Source: docs.aws.amazon.com/lambda, "Using the Lambda runtime API" and "Building a custom runtime".
"""

import base64
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from typing import Any

from coldpress.serve.aws.runtime_api import ROOT, FunctionError

_ERROR = "lambda-runtime-function-error-"
_MAX_CHUNK = 64 << 20
_MAX_LINE = 64 << 10


@dataclass(frozen=True)
class Cut:
    """Break a call off after so many chunks; ``act`` says what the caller is to hear of it."""

    after_chunks: int
    act: Callable[[], FunctionError]


class Call:
    """One event on its way through the runtime; ``pieces`` is its answer.

    ``headers`` are those of the runtime's POST, there once the answer has begun; ``failure`` is there
    once it has ended badly.
    """

    def __init__(self, request_id: str, event: bytes, seconds: float, cut: Cut | None) -> None:
        self.request_id = request_id
        self.event = event
        self.seconds = seconds
        self.cut = cut
        self.headers: Message = Message()
        self.failure: FunctionError | None = None
        self._delivered = threading.Event()
        self._ended = threading.Event()
        self._deadline_s = 0.0
        self._pieces: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def pieces(self) -> Iterator[bytes]:
        """The answer's bytes as they come, each once, until it ends or its time is up."""
        self._delivered.wait()
        while True:
            try:
                piece = self._pieces.get(timeout=max(0.0, self._deadline_s - time.time()))
            except queue.Empty:
                self.end(timed_out(self.seconds))
                return
            if piece is None:
                self._pieces.put(None)  # for whoever asks again
                return
            yield piece

    def deliver(self) -> int:
        """The runtime has it now; its deadline in milliseconds since the epoch."""
        self._deadline_s = time.time() + self.seconds
        self._delivered.set()
        return int(self._deadline_s * 1000)

    def put(self, piece: bytes) -> None:
        """Add to the answer."""
        self._pieces.put(piece)

    def end(self, failure: FunctionError | None = None) -> None:
        """No more comes; only the first end counts."""
        if not self._ended.is_set():
            self.failure = failure
            self._ended.set()
            self._pieces.put(None)
            self._delivered.set()


def timed_out(seconds: float) -> FunctionError:
    """What Lambda says of a function that took too long."""
    return FunctionError("Sandbox.Timedout", f"Task timed out after {seconds:.2f} seconds")


class RuntimeServer(ThreadingHTTPServer):
    """Listens for one runtime, on a port of its own; ``send`` gives it an event."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked = threading.Event()
        """Set while the runtime waits for an event."""
        self.init_failure: FunctionError | None = None
        self.snapshot = threading.Event()
        """Set when the runtime is ready for its snapshot; it goes on when ``resumed`` is."""
        self.resumed = threading.Event()
        self._events: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._calls: dict[str, Call] = {}
        self._count = 0
        self._gone: FunctionError | None = None

    @property
    def address(self) -> str:
        """What AWS_LAMBDA_RUNTIME_API holds."""
        return f"127.0.0.1:{self.server_address[1]}"

    def send(self, event: bytes, seconds: float = 60, cut: Cut | None = None) -> Call:
        """Queue an event that is to be answered within so many seconds of its delivery."""
        self._count += 1
        call = Call(f"request-{self._count}", event, seconds, cut)
        self._calls[call.request_id] = call
        if self._gone is not None:
            call.end(self._gone)
        self._events.put(call)
        return call

    def give_up(self, failure: FunctionError) -> None:
        """The runtime is gone: every call ends, those to come too; the first reason stays."""
        self._gone = self._gone or failure
        self.resumed.set()
        self._events.put(None)
        for call in list(self._calls.values()):
            call.end(self._gone)

    def take(self) -> Call | None:
        """Wait for the next event; None when the runtime is gone."""
        self.asked.set()
        call = self._events.get()
        self.asked.clear()
        if call is None:
            self._events.put(None)
        return call

    def find(self, path: str, verb: str) -> Call | None:
        """The call of a POST to ``/invocation/ID/VERB``."""
        request_id = path.removeprefix(f"{ROOT}/invocation/").removesuffix(f"/{verb}")
        return self._calls.get(request_id)

    def done(self, call: Call, failure: FunctionError | None = None) -> None:
        """A call's answer is complete, or failed."""
        self._calls.pop(call.request_id, None)
        call.end(failure)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: RuntimeServer

    def do_GET(self) -> None:
        if self.path == f"{ROOT}/restore/next":
            self.server.snapshot.set()
            self.server.resumed.wait()
            self._say(200)
            return
        if self.path != f"{ROOT}/invocation/next":
            self._say(404)
            return
        call = self.server.take()
        if call is None:
            self.close_connection = True
            return
        headers = {
            "Lambda-Runtime-Aws-Request-Id": call.request_id,
            "Lambda-Runtime-Deadline-Ms": str(call.deliver()),
            "Lambda-Runtime-Invoked-Function-Arn": "arn:aws:lambda:local:0:function:function",
        }
        self._say(200, call.event, headers)

    def do_POST(self) -> None:
        if self.path == f"{ROOT}/init/error":
            self.server.init_failure = self._reported()
            self._say(202)
        elif (call := self.server.find(self.path, "error")) is not None:
            failure = self._reported()
            self._say(202)
            self.server.done(call, failure)
        elif (call := self.server.find(self.path, "response")) is not None:
            self._answer(call)
        else:
            self.close_connection = True  # what it would have sent is not read
            self._say(400)

    def _answer(self, call: Call) -> None:
        call.headers = self.headers
        failure = None
        try:
            for count, piece in enumerate(pieces_of(self.rfile, self.headers), 1):
                call.put(piece)
                if call.cut is not None and count == call.cut.after_chunks:
                    self.server.done(call, call.cut.act())
                    self.close_connection = True
                    return
            if self.headers.get("Transfer-Encoding") == "chunked":
                failure = _failure(trailers(self.rfile))
        except OSError as error:
            self.server.done(call, FunctionError("Runtime.TruncatedResponse", str(error)))
            self.close_connection = True
            return
        self._say(202)
        self.server.done(call, failure)

    def _reported(self) -> FunctionError:
        told = json.loads(b"".join(pieces_of(self.rfile, self.headers)))
        return FunctionError(str(told.get("errorType")), str(told.get("errorMessage")))

    def _say(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: Any) -> None:
        """Say nothing."""


def pieces_of(stream: BufferedIOBase, headers: Message) -> Iterator[bytes]:
    """A message's body as it comes, a piece per chunk; of a chunked one the trailers remain.

    Raises:
        ConnectionError: it broke off, or is none.
    """
    if headers.get("Transfer-Encoding") != "chunked":
        if (length := _size(headers.get("Content-Length", "0"), 10)) > 0:
            yield _exactly(stream, length)
        return
    while size := _size(stream.readline(_MAX_LINE).decode("latin-1"), 16):
        yield _exactly(stream, size)
        _exactly(stream, 2)


def trailers(stream: BufferedIOBase) -> dict[str, str]:
    """What follows a chunked body's last chunk, names in lower case."""
    found = {}
    while line := stream.readline(_MAX_LINE).decode("latin-1").strip():
        name, _, value = line.partition(":")
        found[name.lower()] = value.strip()
    return found


def _size(text: str, base: int) -> int:
    try:
        size = int(text, base)
    except ValueError as error:
        raise ConnectionError(f"{text!r} is no length") from error
    if not 0 <= size <= _MAX_CHUNK:
        raise ConnectionError(f"{size} bytes at once are too many")
    return size


def _exactly(stream: BufferedIOBase, count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise ConnectionError("the body broke off")
    return data


def _failure(told: dict[str, str]) -> FunctionError | None:
    """An error under way, which comes in the trailers."""
    if f"{_ERROR}type" not in told:
        return None
    body = json.loads(base64.b64decode(told[f"{_ERROR}body"]))
    return FunctionError(told[f"{_ERROR}type"], str(body["errorMessage"]))


@contextmanager
def serving() -> Iterator[RuntimeServer]:
    """A server that answers until the end of the block."""
    server = RuntimeServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.give_up(FunctionError("Sandbox.Shutdown", "Lambda has stopped"))
        server.shutdown()
        server.server_close()
        thread.join()
