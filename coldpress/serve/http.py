"""The HTTP front: OpenAI's routes on Starlette, listening before the model is loaded."""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from coldpress.serve.engine import Engine
from coldpress.serve.fields import ApiError
from coldpress.serve.generation import Delta, Event, Failed
from coldpress.serve.protocol import MAX_BODY_BYTES
from coldpress.serve.reply import ROUTES, Reply, check_ready, models, to_json
from coldpress.serve.trace import Trace

_DRAIN_S = 25
"""Seconds that running answers get after SIGTERM; Kubernetes kills after 30, Cloud Run after 10."""


def serve(engine: Engine, bound: socket.socket, trace: Trace) -> None:
    """Answer on a listening socket until SIGTERM or SIGINT, then finish what is running."""
    config = uvicorn.Config(
        build_app(engine),
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=_DRAIN_S,
    )
    server = uvicorn.Server(config)

    def stop(_signal: int | None = None, _frame: FrameType | None = None) -> None:
        server.should_exit = True

    # uvicorn handles SIGTERM while it runs and raises it again at its end; that must not kill us.
    signal.signal(signal.SIGTERM, stop)
    engine.on_failure = stop
    if engine.failure is not None:
        return
    host, port = bound.getsockname()[:2]
    trace.mark("listening")
    trace.emit("listening", host=host, port=port)
    server.run(sockets=[bound])


def build_app(engine: Engine) -> Starlette:
    """The application: OpenAI's routes, /healthz (it lives) and /readyz (it answers)."""

    async def list_models(_request: Request) -> Response:
        return _json(models(engine))

    async def healthz(_request: Request) -> Response:
        return _json({"status": "ok"})

    async def readyz(_request: Request) -> Response:
        check_ready(engine)
        return _json({"status": "ready"})

    async def answer(request: Request) -> Response:
        return await _answer(engine, request)

    return Starlette(
        routes=[
            *(Route(path, answer, methods=["POST"]) for path in ROUTES),
            Route("/v1/models", list_models),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
        ],
        exception_handlers={
            **dict.fromkeys((ApiError, HTTPException, ClientDisconnect), _refused),
            Exception: _broken,
        },
    )


async def _answer(engine: Engine, request: Request) -> Response:
    check_ready(engine)
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[Event] = asyncio.Queue()

    def emit(event: Event) -> None:
        loop.call_soon_threadsafe(events.put_nowait, event)

    body = await _body(request)
    # A long prompt takes a while to tokenize: not in the event loop.
    reply = await run_in_threadpool(Reply, engine, ROUTES[request.url.path], body, emit)
    if reply.request.stream:
        return _Stream(reply, events)
    return await _whole(request, reply, events)


async def _body(request: Request) -> bytes:
    """Read the body, but not more of it than is allowed."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            break
    return bytes(body)


async def _whole(request: Request, reply: Reply, events: asyncio.Queue[Event]) -> Response:
    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        events.put_nowait(Failed("the client is gone"))

    watcher = asyncio.create_task(watch())
    try:
        while (body := reply.collect(await events.get())) is None:
            pass
        return Response(body, media_type="application/json")
    finally:
        watcher.cancel()
        reply.cancel()


class _Stream(StreamingResponse):
    """Server-sent events of one reply; whatever ends the response ends the generation."""

    def __init__(self, reply: Reply, events: asyncio.Queue[Event]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(_chunks(reply, events), media_type="text/event-stream", headers=headers)
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._reply.cancel()


async def _chunks(reply: Reply, events: asyncio.Queue[Event]) -> AsyncIterator[bytes]:
    if opening := reply.opening():
        yield opening
    while True:
        event = await events.get()
        yield reply.chunk(event)
        if not isinstance(event, Delta):
            return


def _json(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(to_json(value), status, headers, media_type="application/json")


async def _broken(_request: Request, error: Exception) -> Response:
    """A fault of ours: said in the shape that clients read, and raised again for the log."""
    body = ApiError(500, f"an internal error: {type(error).__name__}", "internal_error").body
    return _json(body, 500)


async def _refused(_request: Request, error: Exception) -> Response:
    match error:
        case ApiError():
            # An unread rest of the body would be taken for the next request.
            close = {"Connection": "close"} if error.status == 413 else {}
            return _json(error.body, error.status, {**error.headers, **close})
        case HTTPException():
            body = ApiError(error.status_code, error.detail.lower(), "no_such_route").body
            return _json(body, error.status_code, dict(error.headers or {}))
        case _:
            return Response(status_code=499)  # the client is gone: nobody reads it
