"""A server that is sent what nobody should send, and raw sockets to it."""

import re
import socket
from pathlib import Path
from typing import Any

import httpx

from tests.runtime_process import RuntimeProcess

COMPLETIONS = "/v1/completions"
SHORT: Any = {"prompt": "the", "max_tokens": 4, "temperature": 0}
ENDLESS: Any = {"prompt": "the", "max_tokens": 500_000, "temperature": 0, "stream": True}


class Server:
    """A running server; each ``raw`` is a connection to it."""

    def __init__(self, process: RuntimeProcess) -> None:
        self.pid = process.process.pid
        self.port = process.event("listening")["port"]
        self.url = f"http://127.0.0.1:{self.port}"
        while httpx.get(f"{self.url}/readyz").status_code == 503:
            pass

    def raw(self, receive_buffer: int = 0) -> socket.socket:
        made = socket.socket()
        if receive_buffer:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        made.settimeout(10)
        made.connect(("127.0.0.1", self.port))
        return made

    def post(self, body: Any, path: str = COMPLETIONS) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=10)

    def still_serves(self) -> None:
        assert self.post(SHORT).json()["usage"]["completion_tokens"] == 4

    def metric(self, name: str) -> float:
        found = re.search(rf"^{name} (\S+)", httpx.get(f"{self.url}/metrics").text, re.MULTILINE)
        assert found is not None
        return float(found[1])

    def reset_peak(self) -> int:
        """Begin to watch its memory; MiB now."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        return self.peak_mib

    @property
    def peak_mib(self) -> int:
        """The most memory it has used since."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) >> 10


def status_of(raw: socket.socket) -> int:
    """The status of the next answer; 0: the connection was closed without one."""
    line = b""
    while not line.endswith(b"\r\n"):
        if not (byte := raw.recv(1)):
            return 0
        line += byte
    return int(line.split()[1])


def is_closed(raw: socket.socket) -> bool:
    """Read until the server closes; a timeout of the socket is a failure."""
    try:
        while raw.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    return True


def head(path: str = COMPLETIONS, *headers: str) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()
