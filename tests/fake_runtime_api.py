"""A Lambda Runtime API that really streams: it notes every chunk with its time, and the trailers.

AWS's own emulator buffers the answer and drops the trailers.
"""

import json
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ROOT = "/2018-06-01/runtime"
_TRAILER = "Lambda-Runtime-Function-Error-"


@dataclass
class Posted:
    """What the runtime posted."""

    path: str
    headers: dict[str, str]
    chunks: list[tuple[float, bytes]] = field(default_factory=list)
    """(seconds since the epoch, bytes) as they came; one for an answer in one piece."""
    trailers: dict[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        """All of it."""
        return b"".join(data for _, data in self.chunks)


class FakeRuntimeApi(ThreadingHTTPServer):
    """Give it events with ``invoke``; it answers ``next`` with them, in order."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.events: queue.SimpleQueue[tuple[str, float, Any]] = queue.SimpleQueue()
        self.posted: queue.SimpleQueue[Posted] = queue.SimpleQueue()
        self.hang_up_after: int | None = None
        """Close the connection after so many chunks, as when the caller is gone."""
        self._count = 0

    @property
    def address(self) -> str:
        """What AWS_LAMBDA_RUNTIME_API holds."""
        return f"127.0.0.1:{self.server_address[1]}"

    def send(self, event: Any, seconds: float = 60) -> None:
        """Queue an event that is to be answered in so many seconds."""
        self._count += 1
        self.events.put((f"request-{self._count}", time.time() + seconds, event))

    def invoke(self, event: Any, seconds: float = 60) -> Posted:
        """Send an event and wait for what the runtime makes of it."""
        self.send(event, seconds)
        return self.posted.get(timeout=60)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeRuntimeApi

    def do_GET(self) -> None:
        assert self.path == f"{ROOT}/invocation/next"
        request_id, deadline_s, event = self.server.events.get()
        body = event if isinstance(event, bytes) else json.dumps(event).encode()
        self.send_response(200)
        self.send_header("Lambda-Runtime-Aws-Request-Id", request_id)
        self.send_header("Lambda-Runtime-Deadline-Ms", str(int(deadline_s * 1000)))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        posted = Posted(self.path.removeprefix(ROOT), dict(self.headers.items()))
        if self.headers.get("Transfer-Encoding") == "chunked":
            complete = self._read_chunks(posted)
        else:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            posted.chunks.append((time.time(), data))
            complete = True
        if not complete:
            self.close_connection = True
            self.connection.close()
        self.server.posted.put(posted)
        if complete:
            self.send_response(202)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _read_chunks(self, posted: Posted) -> bool:
        while size := int(self.rfile.readline(), 16):
            data = self.rfile.read(size)
            assert self.rfile.readline() == b"\r\n"
            posted.chunks.append((time.time(), data))
            if len(posted.chunks) == self.server.hang_up_after:
                self.server.hang_up_after = None
                return False
        while (line := self.rfile.readline().strip()) != b"":
            name, _, value = line.decode().partition(": ")
            assert name.startswith(_TRAILER)
            posted.trailers[name] = value
        return True

    def log_message(self, *_args: Any) -> None:
        """Say nothing."""


@contextmanager
def serving() -> Iterator[FakeRuntimeApi]:
    """A fake that answers until the end of the block."""
    api = FakeRuntimeApi()
    thread = threading.Thread(target=api.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield api
    finally:
        api.shutdown()
        api.server_close()
        thread.join()
