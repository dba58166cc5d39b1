"""Clients that never read, WebSockets that break the rules, keys that are none: and the next one is served."""

import json
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from coldpress.serve.api.protocol import MAX_BODY_BYTES
from tests.abused_server import COMPLETIONS, ENDLESS, Server, head, is_closed, status_of
from tests.runtime_process import running


def ask(raw: socket.socket, body: Any) -> None:
    content = json.dumps(body).encode()
    raw.sendall(head(COMPLETIONS, f"Content-Length: {len(content)}") + content)


def test_a_client_that_never_reads_its_stream_is_dropped(server: Server) -> None:
    """The kernel's buffers hold megabytes; the answer would be a hundred."""
    before = server.reset_peak()
    readers = [server.raw(receive_buffer=4096) for _ in range(6)]  # more than there are sequences
    for raw in readers:
        ask(raw, ENDLESS)
    server.still_serves()
    while server.metric("coldpress_running") or server.metric("coldpress_waiting"):
        pass
    assert server.peak_mib - before < 256
    for raw in readers:
        assert is_closed(raw)
        raw.close()


def test_a_client_that_never_reads_a_whole_answer_is_dropped(server: Server) -> None:
    descriptors = Path(f"/proc/{server.pid}/fd")
    content = json.dumps({"content": "x y" * 1_000_000}).encode()
    with server.raw(receive_buffer=4096) as raw:
        raw.sendall(head("/tokenize", f"Content-Length: {len(content)}") + content)
        assert raw.recv(15) == b"HTTP/1.1 200 OK"
        held = len(list(descriptors.iterdir()))
        while len(list(descriptors.iterdir())) >= held:
            pass
        assert is_closed(raw)


def _open_websocket(server: Server, receive_buffer: int = 0) -> socket.socket:
    raw = server.raw(receive_buffer)
    raw.sendall(
        b"GET /v1/chat/ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += raw.recv(1)
    assert answer.startswith(b"HTTP/1.1 101 ")
    return raw


def _frame(opcode: int, payload: bytes, length: int | None = None, *, final: bool = True) -> bytes:
    """A client's frame, masked with zeros; ``length`` as it is announced."""
    size = len(payload) if length is None else length
    shown = bytes([0x80 | size]) if size < 126 else b"\xff" + size.to_bytes(8, "big")
    return bytes([(0x80 if final else 0) | opcode]) + shown + b"\0\0\0\0" + payload


def _close_code(raw: socket.socket) -> int:
    """The code of the close frame that ends the connection; 0 where it ends without one."""
    got = b""
    try:
        while piece := raw.recv(1 << 16):
            got += piece
    except ConnectionResetError:
        pass
    return int.from_bytes(got[2:4], "big") if got[:1] == b"\x88" else 0


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (_frame(1, b"", MAX_BODY_BYTES + 1), 1009),
        (_frame(1, b"", 1 << 62), 1009),
        (_frame(1, b"\xff\xfe"), 1007),
        (_frame(1, b"{", final=False) + _frame(0, b"\xed\xa0\x80"), 1007),
        (_frame(3, b"x"), 1002),
        (_frame(0, b"x"), 1002),
        (_frame(9, b"x" * 200), 1002),
        (_frame(1, b"x")[:1] + b"\x01x", 1002),  # not masked
        (_frame(1, b" ", final=False) + _frame(0, b" " * MAX_BODY_BYTES), 1009),
        (b"\xff" * 1000, 1002),
        (b"GET / HTTP/1.1\r\n\r\n", 1002),
    ],
)
def test_frames_that_break_the_rules(server: Server, sent: bytes, code: int) -> None:
    with _open_websocket(server) as raw:
        with suppress(OSError):  # it may no longer listen
            raw.sendall(sent)
        assert _close_code(raw) in {code, 0}


def test_a_websocket_that_never_reads_is_dropped(server: Server) -> None:
    before = server.reset_peak()
    with _open_websocket(server, receive_buffer=4096) as raw:
        raw.sendall(_frame(1, json.dumps({"max_tokens": 500_000, "messages": [
            {"role": "user", "content": "x"}]}).encode()))  # fmt: skip
        while not server.metric("coldpress_running"):
            pass
        while server.metric("coldpress_running"):
            pass
    assert server.peak_mib - before < 256


def test_pings_whose_pongs_nobody_reads(server: Server) -> None:
    before = server.reset_peak()
    with _open_websocket(server, receive_buffer=4096) as raw:
        pings = _frame(9, b"x" * 125) * 5000
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            while True:
                raw.sendall(pings)
    assert server.peak_mib - before < 64


def test_a_websocket_that_leaves_or_lies_about_its_handshake(server: Server) -> None:
    for upgrade in (
        b"Upgrade: websocket\r\nConnection: Upgrade\r\n",
        b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 99\r\n",
        b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n",
        b"Upgrade: h2c\r\nConnection: Upgrade\r\n",
    ):
        with server.raw() as raw:
            raw.sendall(b"GET /v1/chat/ws HTTP/1.1\r\nHost: x\r\n" + upgrade + b"\r\n")
            assert 400 <= status_of(raw) < 500
    with _open_websocket(server) as raw:
        raw.sendall(_frame(1, b"{"))


def test_keys_that_are_not_the_key(endless_model: Path) -> None:
    key = "correct horse"
    with running(endless_model, "--port", "0", "--quiet", COLDPRESS_API_KEYS=key) as process:
        port = process.event("listening")["port"]

        def status(*headers: bytes) -> int:
            with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
                lines = b"".join(each + b"\r\n" for each in headers)
                raw.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n" + lines + b"\r\n")
                return status_of(raw)

        good = b"Authorization: Bearer correct horse"
        while status(good) == 503:
            pass
        for bad in (
            [],
            [b"Authorization:"],
            [b"Authorization: Bearer"],
            [b"Authorization: Bearer "],
            [good[:-1]],
            [good + b"x"],
            [good + b",other"],
            [b"Authorization: Basic " + b"x" * 100],
            [b"Authorization: Bearer \xff\xfe"],
            [b"Authorization: Bearer " + b"x" * 10_000],
            [b"X-Api-Key: correct horse"],
            [b"Cookie: key=correct horse"],
            [b"Sec-WebSocket-Protocol: bearer, correct horse"],
        ):
            assert status(*bad) == 401, bad
        assert status(good) == 200
