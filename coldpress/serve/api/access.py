"""Around every HTTP request: its id, its key, its line in the log, its place in the metrics."""

import hashlib
import hmac
import json
import os
import re
import sys
import time
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coldpress.serve.api.fields import ApiError
from coldpress.serve.api.metrics import Metrics
from coldpress.serve.api.reply import to_json

# What platforms and monitors ask for without a key; nothing of the model is in it.
_OPEN = frozenset({"/", "/healthz", "/readyz"})
_MAX_HEADERS = 100
_MAX_HEADER_BYTES = 16 << 10
_REQUEST_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)


class Access:
    """Checks keys and keeps the books.

    Args:
        keys: one of which must come as ``Authorization: Bearer KEY``; none asks for none.
        logs: whether to print a JSON line per request on stdout.
        open_paths: what a platform asks for without a key, beside what every one does.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Sequence[str],
        logs: bool,
        metrics: Metrics,
        open_paths: frozenset[str] = frozenset(),
    ) -> None:
        self._app = app
        self._open = _OPEN | open_paths
        # Digests have one length, so that comparing them takes one time.
        self._keys = [hashlib.sha256(key.encode()).digest() for key in keys]
        self._logs = logs
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        headers = Headers(scope=scope)
        request_id = _request_id(headers)
        status = 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            if _too_many(headers):
                await _refuse(scope, noted, 431, "the headers are too large", "headers_too_large")
            elif scope["path"] in self._open or self._may(headers, scope):
                await self._app(scope, receive, noted)
            else:
                await _refuse(scope, noted, 401, "a valid API key is needed", "invalid_api_key")
        finally:
            seconds = time.perf_counter() - began
            self._metrics.request(scope["path"], status, seconds)
            if self._logs and scope["path"] not in {"/healthz", "/readyz"}:
                _log(scope, status, seconds, request_id)

    def _may(self, headers: Headers, scope: Scope) -> bool:
        if not self._keys:
            return True
        given = dict(headers.raw).get(b"authorization", b"")
        key = given[7:] if given[:7].lower() == b"bearer " else _key_of_websocket(scope, headers)
        digest = hashlib.sha256(key).digest()
        # Every key is compared, whichever fits.
        return sum(hmac.compare_digest(digest, each) for each in self._keys) > 0


def _key_of_websocket(scope: Scope, headers: Headers) -> bytes:
    """A browser's WebSocket can set no header but its subprotocols: ``bearer, KEY``."""
    if scope["type"] != "websocket":
        return b""
    offered = [each.strip() for each in headers.get("sec-websocket-protocol", "").split(",")]
    return offered[1].encode() if offered[0] == "bearer" and len(offered) > 1 else b""


def _too_many(headers: Headers) -> bool:
    """Whether there are more than any client needs."""
    sizes = [len(name) + len(value) for name, value in headers.raw]
    return len(sizes) > _MAX_HEADERS or sum(sizes) > _MAX_HEADER_BYTES


async def _refuse(scope: Scope, send: Send, status: int, message: str, code: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    body = to_json(ApiError(status, message, code).body)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _request_id(headers: Headers) -> str:
    """The caller's, where it is one that may go into a header and a log; else a new one."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else os.urandom(12).hex()


def _log(scope: Scope, status: int, seconds: float, request_id: str) -> None:
    line = {
        "event": "request",
        "method": scope.get("method", "WEBSOCKET"),
        "path": scope["path"],
        "status": status,
        "seconds": round(seconds, 4),
        "request_id": request_id,
    }
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
