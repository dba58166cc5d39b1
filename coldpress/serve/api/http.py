"""The HTTP front: OpenAI's routes on Starlette, listening before the model is loaded."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import Receive, Scope, Send

from coldpress.errors import UsageError
from coldpress.serve.api import microvm
from coldpress.serve.api.access import Access
from coldpress.serve.api.body import Bodies
from coldpress.serve.api.embeddings import embeddings
from coldpress.serve.api.fields import ApiError
from coldpress.serve.api.metrics import CONTENT_TYPE, Metrics
from coldpress.serve.api.protocol import parse_tokenize
from coldpress.serve.api.reply import ROUTES, check_ready, models, to_json
from coldpress.serve.api.timed import Answering, Closing, Limits, begin
from coldpress.serve.api.websocket import MAX_MESSAGE_BYTES, chat
from coldpress.serve.engine import Engine
from coldpress.serve.generation import Failed
from coldpress.serve.trace import Trace

_LAST_S = 2
"""Seconds at the end of the draining in which answers that were cut are delivered."""
_BACKLOG = 128
"""Connections that are accepted at once, before the oldest that wait can be given up."""
_LONGEST_S = 86_400
_PAGE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class HttpOptions:
    """What the front allows."""

    keys: tuple[str, ...] = ()
    """API keys, one of which a caller must show; none: no key is asked for."""
    origins: tuple[str, ...] = ()
    """Origins whose pages may call; none: no other site's."""
    answer_s: float = 600
    """Seconds that one answer may take; it is then cut."""
    drain_s: int = 25
    """Seconds after SIGTERM in which answers may end; Kubernetes kills after 30, Cloud Run after 10."""
    client_s: int = 30
    """Seconds that a client may take over its headers, over its body, or before it reads on."""
    log_requests: bool = True

    def __post_init__(self) -> None:
        limits = {"answer": self.answer_s, "client": self.client_s, "drain": self.drain_s}
        for name, seconds in limits.items():
            if not 0 < seconds <= _LONGEST_S:
                raise UsageError(f"--{name}-seconds is {seconds:g}", f"0 to {_LONGEST_S}")


def serve(engine: Engine, bound: socket.socket, trace: Trace, options: HttpOptions) -> None:
    """Answer on a listening socket until SIGTERM or SIGINT, then finish what is running."""
    closing = Closing()
    config = uvicorn.Config(
        build_app(engine, options, closing),
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        backlog=_BACKLOG,
        timeout_keep_alive=options.client_s,
        ws_max_size=MAX_MESSAGE_BYTES,
        timeout_graceful_shutdown=options.drain_s,
    )
    server = _Server(config, lambda: closing.begin(max(options.drain_s - _LAST_S, 0)))

    def stop(_signal: int | None = None, _frame: FrameType | None = None) -> None:
        server.should_exit = True

    # uvicorn handles SIGTERM while it runs and raises it again at its end; that must not kill us.
    signal.signal(signal.SIGTERM, stop)
    engine.on_failure = stop
    if engine.failure is not None:
        return
    # The kernel drops who does not read what is sent.
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, options.client_s * 1000)
    host, port = bound.getsockname()[:2]
    trace.mark("listening")
    trace.emit("listening", host=host, port=port)
    # It listens already while these are imported.
    from coldpress.serve.api.connection import HttpConnection, WebSocketConnection

    config.http, config.ws = HttpConnection, WebSocketConnection
    server.run(sockets=[bound])


class _Server(uvicorn.Server):
    """Tells when it is told to stop."""

    def __init__(self, config: uvicorn.Config, on_exit: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_exit = on_exit

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle SIGTERM and SIGINT while it runs."""
        self._on_exit()
        super().handle_exit(sig, frame)


def build_app(engine: Engine, options: HttpOptions, closing: Closing) -> Starlette:
    """The application: OpenAI's routes, a page to chat on, what platforms and Prometheus ask for."""
    metrics = Metrics(engine)
    limits = Limits(options.answer_s, closing)
    bodies = Bodies(options.client_s)

    async def list_models(_request: Request) -> Response:
        return _json(models(engine))

    async def healthz(_request: Request) -> Response:
        return _json({"status": "ok"})

    async def readyz(_request: Request) -> Response:
        check_ready(engine)
        return _json({"status": "ready"})

    async def expose(_request: Request) -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    async def page(_request: Request) -> Response:
        policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
        return Response(_PAGE.read_bytes(), 200, {"Content-Security-Policy": policy}, "text/html")

    async def tokenize(request: Request) -> Response:
        check_ready(engine)
        text, special = parse_tokenize(await bodies.read(request))
        model = engine.model
        tokens = await run_in_threadpool(
            model.tokenize, text, add_special=special, parse_special=False
        )
        return _json({"tokens": tokens})

    async def embed(request: Request) -> Response:
        body = await embeddings(engine, await bodies.read(request))
        return Response(body, media_type="application/json")

    async def answer(request: Request) -> Response:
        check_ready(engine)
        body = await bodies.read(request)
        answering = await begin(engine, ROUTES[request.url.path], body, limits, metrics)
        if answering.reply.request.stream:
            return _Stream(answering)
        return await _whole(request, answering)

    hooks = microvm.routes(engine) if microvm.ENABLED in os.environ else []
    access = Middleware(
        Access,
        keys=options.keys,
        logs=options.log_requests,
        metrics=metrics,
        open_paths=frozenset(hook.path for hook in hooks),
    )
    cors = Middleware(
        CORSMiddleware,
        allow_origins=list(options.origins),
        allow_methods=["GET", "POST"],
        allow_headers=["Authorization", "Content-Type", "X-Request-Id"],
    )
    return Starlette(
        routes=[
            *(Route(path, answer, methods=["POST"]) for path in ROUTES),
            WebSocketRoute("/v1/chat/ws", chat(engine, metrics, limits)),
            Route("/v1/models", list_models),
            Route("/v1/embeddings", embed, methods=["POST"]),
            Route("/tokenize", tokenize, methods=["POST"]),
            Route("/metrics", expose),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/", page),
            *hooks,
        ],
        # A page of another site asks without a key whether it may ask.
        middleware=[*([cors] if options.origins else []), access],
        exception_handlers={
            **dict.fromkeys((ApiError, HTTPException, ClientDisconnect), _refused),
            Exception: _broken,
        },
    )


async def _whole(request: Request, answering: Answering) -> Response:
    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        answering.mailbox.put(Failed("the client is gone"))

    watcher = asyncio.create_task(watch())
    try:
        async for event in answering.events:
            if (body := answering.reply.collect(event)) is not None:
                return Response(body, media_type="application/json")
        raise ApiError(500, "the answer has no end", "engine_failed")
    finally:
        watcher.cancel()
        answering.reply.cancel()


class _Stream(StreamingResponse):
    """Server-sent events of one reply; whatever ends the response ends the generation."""

    def __init__(self, answering: Answering) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(_chunks(answering), media_type="text/event-stream", headers=headers)
        self._reply = answering.reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._reply.cancel()


async def _chunks(answering: Answering) -> AsyncIterator[bytes]:
    reply = answering.reply
    if opening := reply.opening():
        yield opening
    async for event in answering.events:
        if chunk := reply.chunk(event):
            yield chunk


def _json(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(to_json(value), status, headers, media_type="application/json")


async def _broken(_request: Request, error: Exception) -> Response:
    """A fault of ours: said in the shape that clients read, and raised again for the log."""
    body = ApiError(500, f"an internal error: {type(error).__name__}", "internal_error").body
    return _json(body, 500)


async def _refused(_request: Request, error: Exception) -> Response:
    match error:
        case ApiError():
            return _json(error.body, error.status, error.headers)
        case HTTPException():
            body = ApiError(error.status_code, error.detail.lower(), "no_such_route").body
            return _json(body, error.status_code, dict(error.headers or {}))
        case _:
            return Response(status_code=499)  # the client is gone: nobody reads it
