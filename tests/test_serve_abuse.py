"""What nobody should send, over raw sockets, to the real server: refused, and the next one is served."""

import json
import re
import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from coldpress.serve.api.protocol import MAX_BODY_BYTES
from tests import tiny_gguf
from tests.runtime_process import RuntimeProcess, running

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

    @property
    def peak_mib(self) -> int:
        """The most memory it has used."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) >> 10


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("abuse") / "model.gguf", context=1 << 20)


@pytest.fixture(scope="module")
def shared(model: Path) -> Iterator[Server]:
    arguments = ("--port", "0", "--quiet", "--client-seconds", "2", "--context", "600000")
    with running(model, *arguments) as process:
        yield Server(process)


@pytest.fixture
def server(shared: Server) -> Iterator[Server]:
    """The server; after each test it must still answer."""
    yield shared
    shared.still_serves()


def _status(raw: socket.socket) -> int:
    """The status of the next answer; 0: the connection was closed without one."""
    line = b""
    while not line.endswith(b"\r\n"):
        if not (byte := raw.recv(1)):
            return 0
        line += byte
    return int(line.split()[1])


def _closed(raw: socket.socket) -> bool:
    """Read until the server closes; a timeout of the socket is a failure."""
    try:
        while raw.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    return True


def _head(path: str = COMPLETIONS, *headers: str) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


@pytest.mark.parametrize("path", [COMPLETIONS, "/tokenize", "/nowhere"])
@pytest.mark.parametrize("framing", ["Content-Length: 1073741824", "Transfer-Encoding: chunked"])
def test_a_gigabyte_is_refused_before_it_is_read(server: Server, framing: str, path: str) -> None:
    before = server.peak_mib
    with server.raw() as raw:
        raw.sendall(_head(path, framing))
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
            assert _status(raw) == (404 if path == "/nowhere" else 413)
            server.still_serves()  # while it still comes
        finally:
            stop.set()
            raw.shutdown(socket.SHUT_RDWR)
            pouring.join()
    assert server.peak_mib - before < 64


def test_a_gigabyte_that_asks_first_need_not_come(server: Server) -> None:
    with server.raw() as raw:
        raw.sendall(_head(COMPLETIONS, "Content-Length: 1073741824", "Expect: 100-continue"))
        assert _status(raw) == 413


def test_what_comes_after_a_refusal_is_read_only_for_a_while(server: Server) -> None:
    """Byte by byte a client could hold its connection for ever."""
    with server.raw() as raw:
        raw.sendall(_head(COMPLETIONS, "Content-Length: 1073741824"))
        assert _status(raw) == 413
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
            status = _status(raw)
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
        assert _closed(raw)
    assert got.startswith(b"HTTP/1.1 408") if start else got == b""


def test_a_second_request_that_dribbles_in(server: Server) -> None:
    with server.raw() as raw:
        raw.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /hea")
        assert _status(raw) == 200
        got = b""
        while piece := raw.recv(1000):
            got += piece
        assert b"HTTP/1.1 408" in got


def test_a_body_that_dribbles_in(server: Server) -> None:
    with server.raw() as raw:
        raw.sendall(_head(COMPLETIONS, "Content-Length: 1000") + b"{")
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


def test_two_hundred_slow_clients_keep_nobody_out(server: Server) -> None:
    slow = [server.raw() for _ in range(200)]
    for each in slow:
        each.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Le")
    server.still_serves()
    assert all(_closed(each) for each in slow)
    for each in slow:
        each.close()


def test_more_idle_connections_than_the_process_may_open(model: Path) -> None:
    with running(model, "--port", "0", "--quiet") as process:
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
        _head(COMPLETIONS, "Content-Length: -1"),
        _head(COMPLETIONS, "Content-Length: 1e3"),
        _head(COMPLETIONS, "Content-Length: " + "9" * 5000),
        _head(COMPLETIONS, "Content-Length: 3", "Content-Length: 4") + b"{}  ",
        _head(COMPLETIONS, "Transfer-Encoding: chunked, identity") + b"0\r\n\r\n",
        _head(COMPLETIONS, "Transfer-Encoding : chunked") + b"0\r\n\r\n",
        _head(COMPLETIONS, "Transfer-Encoding: chunked") + b"zz\r\n{}\r\n0\r\n\r\n",
        _head(COMPLETIONS, "Transfer-Encoding: chunked") + b"-2\r\n{}\r\n0\r\n\r\n",
        _head(COMPLETIONS, "Transfer-Encoding: chunked") + b"2\r\n{}garbage\r\n0\r\n\r\n",
    ],
)
def test_what_is_no_http(server: Server, garbage: bytes) -> None:
    with server.raw() as raw:
        raw.sendall(garbage)
        assert _status(raw) in {400, 413}
        assert _closed(raw)


def test_a_length_beside_chunks_smuggles_nothing(server: Server) -> None:
    """Whoever goes by the length would see a second request in the body."""
    inner = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    framing = ("Content-Length: 4", "Transfer-Encoding: chunked", "Connection: close")
    with server.raw() as raw:
        raw.sendall(_head(COMPLETIONS, *framing) + b"%x\r\n%b\r\n0\r\n\r\n" % (len(inner), inner))
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


NESTED = b"[" * 100_000


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": "\xff\xfe"}',
        b'{"prompt": "\xed\xa0\x80"}',
        b"\x00",
        b'{"prompt": "a\x00b"}',
        NESTED,
        b'{"prompt": ' + NESTED,
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        b'{"prompt": ' + b"9" * 100_000 + b"}",
        b'{"prompt": "x", "seed": ' + b"9" * 5_000 + b"}",
        b'{"prompt": "x", "prompt": {}}',
        b"",
        b"null",
        b'"' + b"x" * 100_000,
    ],
)
def test_what_is_no_request(server: Server, body: bytes) -> None:
    answer = httpx.post(server.url + COMPLETIONS, content=body, timeout=10)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("field", ["schema", "tool", "arguments"])
def test_deep_json_where_json_is_wanted(server: Server, field: str) -> None:
    """Python's own limit must not be met half-way, outside the place that expects it."""
    for depth in (*range(50, 440, 20), *range(440, 500), 1000):
        answer = httpx.post(
            f"{server.url}/v1/chat/completions", content=_deep(field, depth), timeout=10
        )
        assert answer.status_code in {200, 400}, depth


def _deep(field: str, depth: int) -> str:
    """A request with JSON in it that is nested as deep as that, twice over."""
    # Written by hand: json.dumps has the same limit.
    hole, deep = '"HOLE"', '{"properties":{"a":' * depth + "{}" + "}}" * depth
    body: dict[str, Any] = {"max_tokens": 2, "messages": [{"role": "user", "content": "x"}]}
    match field:
        case "schema":
            body["response_format"] = _form("HOLE")["response_format"]
        case "tool":
            body["tools"] = [{"type": "function", "function": {"name": "x", "parameters": "HOLE"}}]
        case _:
            hole, deep = "HOLE", json.dumps(deep)[1:-1]
            called = {"type": "function", "function": {"name": "x", "arguments": "HOLE"}}
            body["messages"].append({"role": "assistant", "tool_calls": [called]})
    return json.dumps(body).replace(hole, deep)


def test_a_nul_is_a_character(server: Server) -> None:
    for body in ({"prompt": "a\0b"}, {"prompt": "\0", "stop": ["\0"]}):
        assert server.post({**SHORT, **body}).status_code == 200


@pytest.mark.parametrize("path", [COMPLETIONS, "/v1/chat/completions"])
def test_ten_contexts_of_prompt(server: Server, path: str) -> None:
    """As much as a body may hold; each character is a token or two here."""
    text = "x y" * ((MAX_BODY_BYTES - 1000) // 3)
    body = (
        {"prompt": text}
        if path == COMPLETIONS
        else {"messages": [{"role": "user", "content": text}]}
    )
    answer = server.post(body, path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")


NUMBERS = {
    "max_tokens": [0, -1, 10**7, 10**30, 1.5, "5", True, [], {}],
    "temperature": [-1, 2.1, 1e300, float("nan"), float("inf"), -float("inf"), "1", True, [1], {}],
    "top_p": [-0.1, 1.1, float("nan"), "x", False],
    "min_p": [-0.1, 1.1, float("nan"), "x", False],
    "top_k": [-1, 10**9, 0.5, "x", True, float("nan")],
    "seed": [1.5, 10**30, -(10**30), "x", True, float("nan")],
    "repeat_penalty": [0, -1, 11, float("nan"), float("inf"), "x"],
    "frequency_penalty": [-3, 3, float("nan"), "x"],
    "presence_penalty": [-3, 3, float("nan"), "x"],
    "logprobs": [-1, 6, 10**9, "x", 1.5, {}],
    "logit_bias": [
        [], 3, "x", {"a": 1}, {"1": 101}, {"1": float("nan")}, {"1": "x"}, {"-1": 1}, {"1.5": 1},
        {"9" * 5000: 1}, {str(2**31): 1}, {str(2**40): 1}, {"²": 1}, {str(n): 1 for n in range(2000)},
    ],
    "stop": [3, [3], {}, "", [""], "x" * 1000, ["x"] * 100, [None], ["\ud800"], True],
    "stream": [1, "true", [], {}],
    "stream_options": [1, "x", [], {"include_usage": 3}],
    "grammar": [3, "", "x" * 100_000, {}, [], "\ud800", "root ::= root", "root ::= missing"],
    "response_format": [
        3, "json", [], {"type": "xml"}, {"type": ["json_object"]}, {"type": {}}, {"type": "json_schema"},
        {"type": "json_schema", "json_schema": 3}, {"type": "json_schema", "json_schema": {"schema": 3}},
        {"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}},
        {"type": "json_schema", "json_schema": {"schema": {"$ref": "file:///etc/passwd"}}},
        {"type": "json_schema", "json_schema": {"schema": {"$ref": "http://127.0.0.1/x"}}},
        {"type": "json_schema", "json_schema": {"schema": {"properties": 3}}},
        {"type": "json_schema", "json_schema": {"schema": {"enum": []}}},
    ],
    "n": [2, "x", [], {}, 10**9],
    "model": [3, [], {}],
    "prompt": [None, 3, [], ["a", "b"], [1, 2], {}, True, "\ud800"],
}  # fmt: skip


@pytest.mark.parametrize("field", NUMBERS)
def test_every_field_is_checked(server: Server, field: str) -> None:
    for value in NUMBERS[field]:
        body = json.dumps({**SHORT, field: value})
        answer = httpx.post(server.url + COMPLETIONS, content=body, timeout=10)
        assert answer.status_code == 400, value
        assert answer.json()["error"]["type"] == "invalid_request_error"


def _form(schema: Any) -> dict[str, Any]:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return {"prompt": "x", "max_tokens": 20, "response_format": form}


def _pattern(pattern: str) -> dict[str, Any]:
    return {"type": "string", "pattern": pattern}


def _doubling(operator: str, depth: int) -> dict[str, Any]:
    """Each definition refers twice to the one before."""
    parts: dict[str, Any] = {"d0": {"type": "object"}}
    for n in range(1, depth):
        parts[f"d{n}"] = {operator: [{"$ref": f"#/$defs/d{n - 1}"}] * 2}
    return {"$defs": parts, "$ref": f"#/$defs/d{depth - 1}"}


BOMBS: dict[str, dict[str, Any]] = {
    "minItems 1e9": {"type": "array", "items": {"type": "integer"}, "minItems": 10**9},
    "minItems maxItems": {"type": "array", "items": {}, "minItems": 10**5, "maxItems": 10**6},
    "minLength 1e9": {"type": "string", "minLength": 10**9},
    "minProperties": {"type": "object", "minProperties": 10**9},
    "allOf 40": _doubling("allOf", 40),
    "anyOf 40": _doubling("anyOf", 40),
    "oneOf 40": _doubling("oneOf", 40),
    "enum 10k": {"enum": [f"value{n}" for n in range(4500)]},
    "const": {"const": "x" * 60_000},
    "recursive": {"$ref": "#"},
    "recursive anyOf": {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]},
    "recursive allOf": {"allOf": [{"$ref": "#"}, {"type": "object"}]},
    "mutual": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "tree": {"type": "object", "properties": {"a": {"$ref": "#"}, "b": {"$ref": "#"}}, "required": ["a", "b"]},
    "properties": {"type": "object", "properties": {f"p{n}": {"type": "number"} for n in range(1500)}},
    "required": {
        "properties": {f"p{n}": {"type": "number"} for n in range(900)},
        "required": [f"p{n}" for n in range(900)],
    },
    "(a+)+$": _pattern("^(a+)+$"),
    "((a+)+)+b": _pattern("^(((a+)+)+)+b$"),
    "(a|a)*b": _pattern("^(a|a|a|a)*b$"),
    "a{1,100000}": _pattern("^a{1,100000}$"),
    "(a{1,1000}){1,1000}": _pattern("^(a{1,1000}){1,1000}$"),
    "nested repeats": _pattern("^((((a{1,100}){1,100}){1,100}){1,100}){1,100}$"),
    ".*a.{30}": _pattern("^.*a.{30}$"),
    "(.*a){20}": _pattern("^" + ".*a" * 20 + "$"),
    "(x+x+)+y": _pattern("^(x+x+)+y$"),
    "unicode": _pattern("^(\\p{L}{1,500}){1,500}$"),
    "lookahead": _pattern("^(?=a)(?!b).*$"),
    "backreference": _pattern("^(a)\\1$"),
    "open bracket": _pattern("^(" * 10_000),
    "pattern of 60 kB": _pattern("a?" * 20_000 + "a" * 20_000),
    "patternProperties": {
        "patternProperties": {f"^(a+)+{n}.*b$": {"type": "integer"} for n in range(100)}
    },
    "multipleOf": {"type": "number", "multipleOf": 1e-300},
    "huge numbers": {"type": "integer", "minimum": -(10**300), "maximum": 10**300},
    "uniqueItems": {"type": "array", "uniqueItems": True, "items": {"enum": list(range(2000))}},
    "not": {"not": {"not": {"not": {}}}},
    "if": {"if": {}, "then": {"$ref": "#"}},
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_schema_bomb(server: Server, bomb: str) -> None:
    before = server.peak_mib
    probes: list[int] = []
    done = threading.Event()

    def probe() -> None:
        while not done.is_set():
            probes.append(httpx.get(f"{server.url}/healthz", timeout=5).status_code)

    probing = threading.Thread(target=probe)
    probing.start()
    try:
        answer = server.post(_form(BOMBS[bomb]))
    finally:
        done.set()
        probing.join()
    # Followed, refused, or given up under way: said as such, and nobody else waits meanwhile.
    assert (
        answer.status_code in {200, 400}
        or "cannot be followed" in answer.json()["error"]["message"]
    )
    assert set(probes) <= {200}
    assert server.peak_mib - before < 512


@pytest.mark.parametrize("bomb", ["recursive", "recursive anyOf", "mutual"])
def test_a_schema_that_nothing_fits_is_refused_before_it_is_queued(
    server: Server, bomb: str
) -> None:
    answer = server.post(_form(BOMBS[bomb]))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "response_format")


@pytest.mark.parametrize(
    "grammar",
    [
        "root ::= root root | root",
        "root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000,
        'root ::= "a"{1,1000000000}',
        'root ::= (("a"{1,1000}){1,1000}){1,1000}',
        "\n".join(['root ::= x0'] + [f"x{n} ::= x{n + 1} x{n + 1}" for n in range(60)] + ['x60 ::= "a"']),
        'root ::= [^\\x00-\\U0010FFFF]',
        'root ::= "' + "\\\\" * 30_000 + '"',
        "root ::= " + " | ".join(f'"{n}"' for n in range(6000)),
        "\x00\x01\x02",
        '%llguidance {"no_forcing": 3}\nstart: @gen',
    ],
)  # fmt: skip
def test_a_grammar_bomb(server: Server, grammar: str) -> None:
    answer = server.post({"prompt": "x", "max_tokens": 20, "grammar": grammar})
    assert (
        answer.status_code in {200, 400}
        or "cannot be followed" in answer.json()["error"]["message"]
    )


def _ask(raw: socket.socket, body: Any) -> None:
    content = json.dumps(body).encode()
    raw.sendall(_head(COMPLETIONS, f"Content-Length: {len(content)}") + content)


def test_a_client_that_never_reads_its_stream_is_dropped(server: Server) -> None:
    """The kernel's buffers hold megabytes; the answer would be a hundred."""
    before = server.peak_mib
    readers = [server.raw(receive_buffer=4096) for _ in range(6)]  # more than there are sequences
    for raw in readers:
        _ask(raw, ENDLESS)
    server.still_serves()
    while server.metric("coldpress_running") or server.metric("coldpress_waiting"):
        pass
    assert server.peak_mib - before < 256
    for raw in readers:
        assert _closed(raw)
        raw.close()


def test_a_client_that_never_reads_a_whole_answer_is_dropped(server: Server) -> None:
    descriptors = Path(f"/proc/{server.pid}/fd")
    content = json.dumps({"content": "x y" * 1_000_000}).encode()
    with server.raw(receive_buffer=4096) as raw:
        raw.sendall(_head("/tokenize", f"Content-Length: {len(content)}") + content)
        assert raw.recv(15) == b"HTTP/1.1 200 OK"
        held = len(list(descriptors.iterdir()))
        while len(list(descriptors.iterdir())) >= held:
            pass
        assert _closed(raw)


def _open_websocket(server: Server, receive_buffer: int = 0) -> socket.socket:
    raw = server.raw(receive_buffer)
    raw.sendall(
        b"GET /v1/chat/ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += raw.recv(1)
    assert head.startswith(b"HTTP/1.1 101 ")
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
    before = server.peak_mib
    with _open_websocket(server, receive_buffer=4096) as raw:
        raw.sendall(_frame(1, json.dumps({"max_tokens": 500_000, "messages": [
            {"role": "user", "content": "x"}]}).encode()))  # fmt: skip
        while not server.metric("coldpress_running"):
            pass
        while server.metric("coldpress_running"):
            pass
    assert server.peak_mib - before < 256


def test_pings_whose_pongs_nobody_reads(server: Server) -> None:
    before = server.peak_mib
    with _open_websocket(server, receive_buffer=4096) as raw:
        pings = _frame(9, b"x" * 125) * 5000
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            while True:
                raw.sendall(pings)
    assert server.peak_mib - before < 64


def test_a_websocket_that_leaves_or_lies_about_its_handshake(server: Server) -> None:
    for head in (
        b"Upgrade: websocket\r\nConnection: Upgrade\r\n",
        b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 99\r\n",
        b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n",
        b"Upgrade: h2c\r\nConnection: Upgrade\r\n",
    ):
        with server.raw() as raw:
            raw.sendall(b"GET /v1/chat/ws HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n")
            assert 400 <= _status(raw) < 500
    with _open_websocket(server) as raw:
        raw.sendall(_frame(1, b"{"))


def test_keys_that_are_not_the_key(model: Path) -> None:
    key = "correct horse"
    with running(model, "--port", "0", "--quiet", COLDPRESS_API_KEYS=key) as process:
        port = process.event("listening")["port"]

        def status(*headers: bytes) -> int:
            with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
                lines = b"".join(each + b"\r\n" for each in headers)
                raw.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n" + lines + b"\r\n")
                return _status(raw)

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
