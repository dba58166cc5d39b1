"""HTTP that nobody should send, over raw sockets: refused, and the next request is served."""

import re
import resource
import socket
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from coldpress.serve.api.protocol import MAX_BODY_BYTES
from tests.abused_server import COMPLETIONS, Server, head, is_closed, status_of
from tests.runtime_process import running


@pytest.mark.parametrize("path", [COMPLETIONS, "/tokenize", "/nowhere"])
@pytest.mark.parametrize("framing", ["Content-Length: 1073741824", "Transfer-Encoding: chunked"])
def test_a_gigabyte_is_refused_before_it_is_read(server: Server, framing: str, path: str) -> None:
    before = server.reset_peak()
    with server.raw() as raw:
        raw.sendall(head(path, framing))
        stop = threading.Event()

        def pour() -> None:
            piece = b" " * (1 << 20)
            if "chunked" in framing:
                piece = b"100000\r\n" + piece + b"\r\n"
            try:
                while not stop.is_set():
                    raw.sendall(piece)
            except OSError:
                pass  # it no longer listens

        pouring = threading.Thread(target=pour)
        pouring.start()
        try:
            assert status_of(raw) == (404 if path == "/nowhere" else 413)
            server.still_serves()  # while it still comes
        finally:
            stop.set()
            raw.shutdown(socket.SHUT_RDWR)
            pouring.join()
    assert server.peak_mib - before < 64


def test_a_gigabyte_that_asks_first_need_not_come(server: Server) -> None:
    with server.raw() as raw:
        raw.sendall(head(COMPLETIONS, "Content-Length: 1073741824", "Expect: 100-continue"))
        assert status_of(raw) == 413


def test_what_comes_after_a_refusal_is_read_only_for_a_while(server: Server) -> None:
    """Byte by byte a client could hold its connection for ever."""
    with server.raw() as raw:
        raw.sendall(head(COMPLETIONS, "Content-Length: 1073741824"))
        assert status_of(raw) == 413
        raw.settimeout(0.1)
        for _ in range(100):
            try:
                raw.sendall(b" ")
                if raw.recv(1 << 16) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        else:
            pytest.fail("it still listens after ten seconds")


@pytest.mark.parametrize(
    "headers",
    [
        b"".join(b"X-%d: y\r\n" % n for n in range(10_000)),
        b"".join(b"X-%d: y\r\n" % n for n in range(200)),
        b"X-Large: " + b"y" * 1_000_000 + b"\r\n",
        b"X-Large: " + b"y" * 40_000 + b"\r\n",
        b"X-Request-Id: " + b"y" * 15_000 + b"\r\nX: " + b"y" * 5_000 + b"\r\n",
    ],
    ids=["10k", "200", "1 MB", "40 kB", "20 kB"],
)
@pytest.mark.parametrize("path", ["/healthz", "/v1/chat/ws", COMPLETIONS])
def test_too_many_headers(server: Server, path: str, headers: bytes) -> None:
    upgrade = b""
    if path == "/v1/chat/ws":
        upgrade = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        upgrade += b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    with server.raw() as raw:
        try:
            raw.sendall(
                b"GET %b HTTP/1.1\r\nHost: x\r\n%b%b\r\n" % (path.encode(), upgrade, headers)
            )
            status = status_of(raw)
        except (ConnectionResetError, BrokenPipeError):
            status = 400  # it stopped listening in the middle
    assert status in {400, 403, 431}


@pytest.mark.parametrize("start", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n", b"GET / HTTP/1.1\r\nX"])
def test_headers_that_dribble_in(server: Server, start: bytes) -> None:
    with server.raw() as raw:
        raw.sendall(start)
        raw.settimeout(0.1)
        got = b""
        for _ in range(100):
            try:
                if start:
                    raw.sendall(b"y")
                got += raw.recv(100)
                break
            except TimeoutError:
                continue
        raw.settimeout(10)
        assert is_closed(raw)
    assert got.startswith(b"HTTP/1.1 408") if start else got == b""


def test_a_second_request_that_dribbles_in(server: Server) -> None:
    with server.raw() as raw:
        raw.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /hea")
        assert status_of(raw) == 200
        got = b""
        while piece := raw.recv(1000):
            got += piece
        assert b"HTTP/1.1 408" in got


def test_a_body_that_dribbles_in(server: Server) -> None:
    with server.raw() as raw:
        raw.sendall(head(COMPLETIONS, "Content-Length: 1000") + b"{")
        raw.settimeout(0.1)
        for _ in range(100):
            raw.sendall(b" ")
            try:
                assert raw.recv(12) == b"HTTP/1.1 408"
                break
            except TimeoutError:
                continue
        else:
            pytest.fail("it still waits after ten seconds")


def test_many_large_bodies_at_once_are_not_all_held(server: Server) -> None:
    before = server.reset_peak()
    almost = b" " * (MAX_BODY_BYTES - 1)
    statuses = []
    pouring = [server.raw() for _ in range(60)]
    for each in pouring:
        with suppress(OSError):  # it may have been refused already
            each.sendall(head(COMPLETIONS, f"Content-Length: {MAX_BODY_BYTES}") + almost)
    server.still_serves()
    for each in pouring:
        with each:
            statuses.append(status_of(each))
    assert set(statuses) == {408, 503}
    assert server.peak_mib - before < 192


def test_two_hundred_slow_clients_keep_nobody_out(server: Server) -> None:
    slow = [server.raw() for _ in range(200)]
    for each in slow:
        each.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Le")
    server.still_serves()
    assert all(is_closed(each) for each in slow)
    for each in slow:
        each.close()


def test_more_idle_connections_than_the_process_may_open(endless_model: Path) -> None:
    with running(endless_model, "--port", "0", "--quiet") as process:
        server = Server(process)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (800, 800))
        idle = [server.raw() for _ in range(2000)]
        server.still_serves()
        for each in idle:
            each.close()


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00" * 100 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n\r\n",  # TLS
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA\x00B: c\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET  /  HTTP/1.1\r\nHost: x\r\n\r\n",
        head(COMPLETIONS, "Content-Length: -1"),
        head(COMPLETIONS, "Content-Length: 1e3"),
        head(COMPLETIONS, "Content-Length: " + "9" * 5000),
        head(COMPLETIONS, "Content-Length: 3", "Content-Length: 4") + b"{}  ",
        head(COMPLETIONS, "Transfer-Encoding: chunked, identity") + b"0\r\n\r\n",
        head(COMPLETIONS, "Transfer-Encoding : chunked") + b"0\r\n\r\n",
        head(COMPLETIONS, "Transfer-Encoding: chunked") + b"zz\r\n{}\r\n0\r\n\r\n",
        head(COMPLETIONS, "Transfer-Encoding: chunked") + b"-2\r\n{}\r\n0\r\n\r\n",
        head(COMPLETIONS, "Transfer-Encoding: chunked") + b"2\r\n{}garbage\r\n0\r\n\r\n",
    ],
)
def test_what_is_no_http(server: Server, garbage: bytes) -> None:
    with server.raw() as raw:
        raw.sendall(garbage)
        assert status_of(raw) in {400, 413}
        assert is_closed(raw)


def test_a_length_beside_chunks_smuggles_nothing(server: Server) -> None:
    """Whoever goes by the length would see a second request in the body."""
    inner = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    framing = ("Content-Length: 4", "Transfer-Encoding: chunked", "Connection: close")
    with server.raw() as raw:
        raw.sendall(head(COMPLETIONS, *framing) + b"%x\r\n%b\r\n0\r\n\r\n" % (len(inner), inner))
        got = b""
        while piece := raw.recv(1 << 16):
            got += piece
    assert got.count(b"HTTP/1.1 ") == 1 and got.startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/..%2f..%2fetc%2fpasswd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/v1/../../etc/passwd",
        "//etc/passwd",
        "/..\\..\\etc\\passwd",
        "/page.html",
        "/%00",
        "/%ff%fe",
        "/v1/completions/",
        "http://127.0.0.1/etc/passwd",
        "*",
    ],
)
def test_no_path_leads_out(server: Server, path: str) -> None:
    with server.raw() as raw:
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        got = b""
        while piece := raw.recv(1 << 16):
            got += piece
    assert re.match(rb"HTTP/1.1 (400|404|405|307) ", got)
    assert b"root:" not in got and b"<html" not in got
