"""A function URL in front of a local Lambda: HTTP requests become events, answers stream back at once.

``POST /2015-03-31/functions/function/invocations`` invokes it directly, as with AWS's own emulator.

Source: docs.aws.amazon.com/lambda, "Invoking Lambda function URLs" (payload format 2.0).
"""

import base64
import json
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from coldpress.serve.aws.emulator import Lambda
from coldpress.serve.aws.runtime_api import HTTP_INTEGRATION
from coldpress.serve.aws.runtime_server import Call, pieces_of, trailers
from coldpress.serve.trace import Trace

_DIRECT = "/2015-03-31/functions/function/invocations"
_DOMAIN = "local.lambda-url.us-east-1.on.aws"
_MAX_BODY_BYTES = 6 << 20
_MAX_PRELUDE_BYTES = 16 << 10
_CLIENT_S = 60
"""A client that neither sends nor reads for so long is let go."""
_CANNOT_HAVE_BODY = {204, 304}
_HOP_BY_HOP = {"connection", "content-length", "date", "keep-alive", "transfer-encoding"}


def serve(function: Lambda, bound: socket.socket, trace: Trace) -> None:
    """Answer on a listening socket until SIGTERM or SIGINT."""
    server = Server(function, bound, trace)
    for number in (signal.SIGTERM, signal.SIGINT):
        # shutdown() waits for the loop that this very thread runs.
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
    host, port = bound.getsockname()[:2]
    trace.emit("listening", host=host, port=port)
    try:
        server.serve_forever(poll_interval=0.1)
    finally:
        function.close()


class Server(ThreadingHTTPServer):
    """Answers on a socket that listens already."""

    daemon_threads = True

    def __init__(self, function: Lambda, bound: socket.socket, trace: Trace) -> None:
        super().__init__(bound.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = bound
        self.server_name, self.server_port = bound.getsockname()[:2]
        self.function = function
        self.trace = trace

    def handle_error(self, _request: Any, _address: Any) -> None:
        """A client that left is no fault; anything else is one of ours."""
        if not isinstance(sys.exception(), OSError):
            raise


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _CLIENT_S
    server: Server

    def __getattr__(self, name: str) -> Callable[[], None]:
        # BaseHTTPRequestHandler asks for do_METHOD: a function URL takes every method.
        if name.startswith("do_"):
            return self._take
        raise AttributeError(name)

    def _take(self) -> None:
        self._began_s = time.monotonic()
        self._first_s: float | None = None
        try:
            body = self._body()
        except ConnectionError as error:
            self.close_connection = True
            self._whole(413, {"Message": str(error)})
            return
        direct = self.command == "POST" and self.path == _DIRECT
        event = body if direct else json.dumps(self._event(body)).encode()
        with self.server.function.invoke(event) as (call, cold):
            try:
                status = self._direct(call) if direct else self._url(call)
            except OSError:
                self.close_connection = True
                status = 499  # the client has left
        self._log(call, status, cold=cold)

    def _body(self) -> bytes:
        """The request's body.

        Raises:
            ConnectionError: it broke off, or is too large.
        """
        body = b""
        for piece in pieces_of(self.rfile, self.headers):
            body += piece
            if len(body) > _MAX_BODY_BYTES:
                raise ConnectionError("Request must be smaller than 6291456 bytes")
        if self.headers.get("Transfer-Encoding") == "chunked":
            trailers(self.rfile)
        return body

    def _event(self, body: bytes) -> dict[str, Any]:
        path, _, query = self.path.partition("?")
        now = datetime.now(UTC)
        try:
            text, encoded = body.decode(), False
        except UnicodeDecodeError:
            text, encoded = base64.b64encode(body).decode(), True
        http = {
            "method": self.command,
            "path": path,
            "protocol": self.request_version,
            "sourceIp": self.client_address[0],
            "userAgent": self.headers.get("User-Agent", ""),
        }
        return {
            "version": "2.0",
            "routeKey": "$default",
            "rawPath": path,
            "rawQueryString": query,
            "headers": _joined(self.headers.items()),
            "requestContext": {
                "accountId": "anonymous",
                "apiId": "local",
                "domainName": _DOMAIN,
                "domainPrefix": "local",
                "http": http,
                "routeKey": "$default",
                "stage": "$default",
                "time": now.strftime("%d/%b/%Y:%H:%M:%S +0000"),
                "timeEpoch": int(now.timestamp() * 1000),
            },
            "body": text,
            "isBase64Encoded": encoded,
        }

    def _direct(self, call: Call) -> int:
        """The runtime's bytes as they are."""
        pieces = call.pieces()
        first = next(pieces, b"")
        if not first and call.failure is not None:
            error = json.loads(call.failure.body())
            self._whole(200, error, [("X-Amz-Function-Error", "Unhandled")])
            return 200
        self._stream(200, [("Content-Type", "application/json")], first, pieces, call)
        return 200

    def _url(self, call: Call) -> int:
        """What the prelude says, then the rest piece by piece; of a runtime that does not stream, its JSON."""
        pieces = call.pieces()
        head, rest = b"", b""
        for piece in pieces:
            head += piece
            if call.headers.get("Content-Type") == HTTP_INTEGRATION:
                if b"\0" * 8 in head:
                    head, _, rest = head.partition(b"\0" * 8)
                    break
                if len(head) > _MAX_PRELUDE_BYTES:
                    break
        try:
            prelude = json.loads(head)
            status, headers = int(prelude["statusCode"]), dict(prelude.get("headers") or {})
        except (ValueError, KeyError, TypeError):
            self._whole(502, {"Message": "Internal Server Error"})
            return 502
        told = [(str(name), str(value)) for name, value in headers.items()]
        told += [("Set-Cookie", str(cookie)) for cookie in prelude.get("cookies") or ()]
        if text := prelude.get("body"):
            rest = base64.b64decode(text) if prelude.get("isBase64Encoded") else text.encode()
        self._stream(status, told, rest, pieces, call)
        return status

    def _whole(
        self, status: int, value: object, headers: list[tuple[str, str]] | None = None
    ) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, told in [("Content-Type", "application/json"), *(headers or [])]:
            self.send_header(name, told)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self._write(body)

    def _stream(
        self,
        status: int,
        headers: list[tuple[str, str]],
        first: bytes,
        pieces: Iterator[bytes],
        call: Call,
    ) -> None:
        """Every piece at once; an answer that failed under way breaks off without its last chunk."""
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("X-Amzn-RequestId", call.request_id)
        bare = self.command == "HEAD" or status in _CANNOT_HAVE_BODY
        chunked = self.request_version == "HTTP/1.1" and not bare
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.close_connection = True
        self.end_headers()
        if bare:
            return
        if first:
            self._write(_chunk(first) if chunked else first)
        for piece in pieces:
            self._write(_chunk(piece) if chunked else piece)
        if call.failure is not None:
            self.close_connection = True
        elif chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _write(self, data: bytes) -> None:
        self._first_s = self._first_s or time.monotonic()
        self.wfile.write(data)

    def _log(self, call: Call, status: int, *, cold: bool) -> None:
        now_s = time.monotonic()
        facts: dict[str, object] = {
            "request_id": call.request_id,
            "method": self.command,
            "path": self.path,
            "status": status,
            "cold": cold,
            "first_byte_ms": round(1000 * ((self._first_s or now_s) - self._began_s), 1),
            "total_ms": round(1000 * (now_s - self._began_s), 1),
        }
        if call.failure is not None:
            facts |= {"error": call.failure.type, "message": call.failure.message}
        self.server.trace.emit("invocation", **facts)

    def log_message(self, *_args: Any) -> None:
        """Each invocation has a line of its own."""


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _joined(items: list[tuple[str, str]]) -> dict[str, str]:
    """Headers as events have them: names in lower case, values of the same name joined."""
    joined: dict[str, str] = {}
    for name, value in items:
        name = name.lower()
        joined[name] = f"{joined[name]},{value}" if name in joined else value
    return joined
