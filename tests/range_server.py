"""An HTTP server that behaves like object storage: slow to answer, so fast per stream and in all.

Also a source of every fault that a loader can meet. ``python -m tests.range_server FOLDER`` serves a
folder from a process of its own, for benchmarks; it prints its port.
"""

import argparse
import contextlib
import hashlib
import os
import re
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_SLICE_BYTES = 256 << 10
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass(frozen=True)
class Speed:
    """Seconds before the first byte of an answer, bytes per second of one answer and of all."""

    latency_s: float = 0.0
    stream_bytes_per_s: float = float("inf")
    total_bytes_per_s: float = float("inf")


@dataclass
class Fault:
    """What goes wrong, on requests of ``name``, the first ``times`` times after ``after`` requests.

    Kinds: flip, drop, stall, drip, whole (200), shifted (another range), long, short (Content-Length),
    gzip, garbage (no HTTP), changed (another ETag from then on), resized, or a status number.
    """

    kind: str
    name: str = "model.gguf"
    times: int = 1
    after: int = 0
    location: str = ""
    seen: int = 0


@dataclass
class State:
    """What the server serves and has seen; shared by its threads."""

    folder: Path
    speed: Speed = Speed()
    faults: list[Fault] = field(default_factory=list)
    token: str | None = None
    requests: list[tuple[str, str]] = field(default_factory=list)
    """(name, Range) of each."""
    connections: int = 0
    hold: Callable[[str, int], None] = lambda _name, _start: None
    """Called with a request's name and first byte before it is answered."""
    released: threading.Event = field(default_factory=threading.Event)
    """Ends stalls."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    clock_s: float = 0.0

    def fault(self, name: str) -> Fault | None:
        """The fault that this request meets."""
        with self.lock:
            for fault in self.faults:
                if fault.name == name:
                    fault.seen += 1
                    if fault.after < fault.seen <= fault.after + fault.times:
                        return fault
        return None

    def pace(self, count: int, own_s: float) -> float:
        """Wait until ``count`` more bytes may be on their way; the stream's clock afterwards."""
        with self.lock:
            now = time.monotonic()
            self.clock_s = max(self.clock_s, now - 0.005) + count / self.speed.total_bytes_per_s
            until = max(self.clock_s, own_s + count / self.speed.stream_bytes_per_s)
        time.sleep(max(0.0, until - time.monotonic()))
        return until


class Handler(BaseHTTPRequestHandler):
    """Answers GET with the file's bytes, or the range of them that is asked for."""

    protocol_version = "HTTP/1.1"
    state: State

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.state.connections += 1

    def log_message(self, *_arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        state = self.state
        name = self.path.partition("?")[0].rpartition("/")[2]
        asked = self.headers.get("Range", "")
        state.requests.append((self.path, asked))
        found = _RANGE.fullmatch(asked)
        state.hold(name, int(found[1]) if found else 0)
        fault = state.fault(name)
        path = state.folder / name
        if fault and fault.kind == "garbage":
            self.wfile.write(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
            self.close_connection = True
        elif fault and fault.kind.isdecimal():
            self._empty(int(fault.kind), fault.location)
        elif state.token and self.headers.get("Authorization") != f"Bearer {state.token}":
            self._empty(401)
        elif not path.is_file():
            self._empty(404)
        else:
            self._answer(path, found, fault)

    def _empty(self, status: int, location: str = "") -> None:
        self.send_response(status)
        if location:
            self.send_header("Location", location)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _answer(self, path: Path, asked: re.Match[str] | None, fault: Fault | None) -> None:
        kind = fault.kind if fault else ""
        size = path.stat().st_size
        etag = f'"{path.stat().st_mtime_ns}{"-changed" if kind == "changed" else ""}"'
        start, end = 0, size
        if asked and kind != "whole" and self.headers.get("If-Range", etag) == etag:
            start = int(asked[1])
            end = min(int(asked[2]) + 1 if asked[2] else size, size)
            if start >= size:
                self._empty(416)
                return
            shown = start + 1 if kind == "shifted" else start
            total = size + 1 if kind == "resized" else size
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {shown}-{end - 1}/{total}")
        else:
            self.send_response(200)
        self.send_header("ETag", etag)
        if kind == "gzip":
            self.send_header("Content-Encoding", "gzip")
        length = end - start + {"long": 100, "short": -1}.get(kind, 0)
        self.send_header("Content-Length", str(length))
        time.sleep(self.state.speed.latency_s)
        self.end_headers()
        if kind:
            self._send_badly(path, start, end, kind)
        else:
            self._send(path, start, end)

    def _send(self, path: Path, start: int, end: int) -> None:
        own_s = time.monotonic()
        if isinstance(self.connection, ssl.SSLSocket):
            self.wfile.write(path.read_bytes()[start:end])
            return
        with path.open("rb") as stream:
            while start < end:
                count = min(_SLICE_BYTES, end - start)
                own_s = self.state.pace(count, own_s)
                while count:
                    sent = os.sendfile(self.connection.fileno(), stream.fileno(), start, count)
                    start, count = start + sent, count - sent

    def _send_badly(self, path: Path, start: int, end: int, kind: str) -> None:
        with path.open("rb") as stream:
            stream.seek(start)
            data = bytearray(stream.read(end - start))
        match kind:
            case "flip":
                data[len(data) // 2] ^= 1
            case "drop" | "long":
                data = data[: len(data) // 2]
                self.close_connection = True
            case "short":
                data = data[:-1]
            case "stall":
                self.wfile.write(data[: len(data) // 2])
                self.state.released.wait()
                self.close_connection = True
                return
            case "drip":
                for byte in data:
                    self.wfile.write(bytes([byte]))
                    if self.state.released.wait(0.01):
                        return
        self.wfile.write(data)


@contextlib.contextmanager
def serving(
    folder: Path, certificate: Path | None = None, **settings: Any
) -> Iterator[tuple[str, State]]:
    """Serve a folder on a free port, by TLS with a certificate; yields its address and its state."""
    state = State(folder, **settings)
    handler = type("BoundHandler", (Handler,), {"state": state})
    server = _Server(("127.0.0.1", 0), handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_port}", state
    finally:
        state.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are what the tests are about."""


def sha256(path: Path) -> str:
    """A file's digest."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--latency-ms", type=float, default=10)
    parser.add_argument("--stream-mb-s", type=float, default=70)
    parser.add_argument("--total-mb-s", type=float, default=600)
    asked = parser.parse_args()
    speed = Speed(asked.latency_ms / 1e3, asked.stream_mb_s * 1e6, asked.total_mb_s * 1e6)
    with serving(asked.folder, speed=speed) as (address, _):
        print(address, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
