"""A real registry on loopback, and a proxy before it that does what networks and registries do wrong."""

import base64
import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from tests.containers import free_port

USER, PASSWORD = "someone", "not: a secret"


@contextmanager
def registry(folder: Path, *, password: bool = False) -> Iterator[str]:
    """Debian's docker-registry; its HOST:PORT."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("needs docker-registry")
    port = free_port()
    config: dict[str, Any] = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": f"127.0.0.1:{port}", "secret": "shared by nobody"},
    }
    if password:
        config["auth"] = {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}
        # Of PASSWORD, by `htpasswd -nbB -C 4`; bcrypt is all that the registry takes.
        (folder / "htpasswd").write_text(f"{USER}:{_BCRYPT}\n")
    (folder / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, "serve", str(folder / "config.yml")], stdout=log, stderr=log
        )
        try:
            _wait(process, port)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


_BCRYPT = "$2y$04$l9eubX.Ozu1sM3N9khQKr.BnB0vsogRD.11bnVz4ym0KUS3Fkw91y"


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 5).close()
            return
        except OSError:
            assert process.poll() is None, "the registry ended"
            assert time.monotonic() < deadline, "the registry does not listen"
            time.sleep(0.02)


@dataclass
class Fault:
    """What goes wrong at requests of a method whose path holds a text.

    Kinds: drop (before the registry sees the request), half (the registry sees half of it), lose (the
    answer), cut (the answer's second half), flip (a bit of the answer), digest (another one in the
    header), or a status number. ``times`` is how often, after ``after`` such requests.
    """

    kind: str
    method: str
    path: str = ""
    times: int = 1
    after: int = 0
    seen: int = 0

    def strikes(self, method: str, path: str) -> bool:
        if method != self.method or self.path not in path:
            return False
        self.seen += 1
        return self.after < self.seen <= self.after + self.times


@dataclass
class Proxy:
    """What the proxy has seen; ``tokens`` makes it ask for bearer tokens, each good for so many requests."""

    upstream: str
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str, int]] = field(default_factory=list)
    tokens: int = 0
    token_requests: list[dict[str, str]] = field(default_factory=list)
    issued: dict[str, int] = field(default_factory=dict)
    refused: int = 0
    ranges: bool = True
    host: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def body_bytes(self) -> int:
        """Bytes of all requests' bodies, heard out or not."""
        return sum(size for _, _, size in self.requests)

    def count(self, method: str, path: str = "") -> int:
        """How many requests there were of a kind."""
        return sum(1 for m, p, _ in self.requests if m == method and path in p)


@contextmanager
def proxy(upstream: str, *faults: Fault, **options: Any) -> Iterator[Proxy]:
    """A proxy before a registry."""
    state = Proxy(upstream, list(faults), **options)
    handler = type("Handler", (_Handler,), {"state": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    state.host = f"127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Proxy

    def log_message(self, *_: object) -> None:
        pass

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        state, path = self.state, urlsplit(self.path).path
        if path == "/token":
            self._token(body)
            return
        with state.lock:
            state.requests.append((self.command, path, len(body)))
            struck = [it.kind for it in state.faults if it.strikes(self.command, path)]
        if state.tokens and not self._known():
            self._challenge()
            return
        fault = struck[0] if struck else ""
        if fault == "drop":
            self._hang_up()
        elif fault.isdigit():
            self._answer(
                int(fault), {}, b'{"errors":[{"code":"X","message":"a\\u001b[31m fault"}]}'
            )
        else:
            self._forward(body, fault)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = _handle

    def _forward(self, body: bytes, fault: str) -> None:
        upstream = HTTPConnection(self.state.upstream, timeout=30)
        skipped = ("authorization",) if self.state.tokens else ()
        headers = {k: v for k, v in self.headers.items() if k.lower() not in skipped}
        if not self.state.ranges:
            headers.pop("Range", None)
        if fault == "half":
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for key, value in headers.items():
                upstream.putheader(key, value)
            upstream.endheaders(body[: len(body) // 2])
            upstream.close()
            self._hang_up()
            return
        upstream.request(self.command, self.path, body or None, headers)
        response = upstream.getresponse()
        data = response.read()
        upstream.close()
        kept = {
            k: v for k, v in response.headers.items() if k.lower() not in ("transfer-encoding",)
        }
        match fault:
            case "lose":
                self._hang_up()
                return
            case "flip":
                data = data[:-1] + bytes([data[-1] ^ 1])
            case "digest":
                kept["Docker-Content-Digest"] = f"sha256:{'0' * 64}"
        self._answer(response.status, kept, data, cut=fault == "cut")

    def _answer(
        self, status: int, headers: dict[str, str], data: bytes, *, cut: bool = False
    ) -> None:
        self.send_response_only(status)
        for key, value in headers.items():
            if self.command == "HEAD" or key.lower() != "content-length":
                self.send_header(key, value)
        if self.command != "HEAD" and status != 204:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def _known(self) -> bool:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        with self.state.lock:
            left = self.state.issued.get(token, 0)
            self.state.issued[token] = left - 1
        return left > 0

    def _challenge(self) -> None:
        self.state.refused += 1
        repository = self.path.split("/v2/")[1].split("/blobs/")[0].split("/manifests/")[0]
        scope = f"repository:{repository}:pull,push"
        realm = f"http://{self.state.host}/token"
        said = f'Bearer realm="{realm}",service="test",scope="{scope}"'
        self._answer(401, {"WWW-Authenticate": said}, b"{}")

    def _token(self, body: bytes) -> None:
        asked = dict(parse_qsl(body.decode() if body else urlsplit(self.path).query))
        given = self.headers.get("Authorization", "").removeprefix("Basic ")
        asked["user"] = base64.b64decode(given).decode()
        with self.state.lock:
            self.state.token_requests.append(asked)
            token = f"token-{len(self.state.token_requests)}"
            allowed = asked["user"] == f"{USER}:{PASSWORD}" or asked.get("refresh_token") == "renew"
            self.state.issued[token] = self.state.tokens if allowed else 0
        self._answer(200, {}, json.dumps({"token": token}).encode())
