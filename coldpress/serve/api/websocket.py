"""Chat over a WebSocket: one message in, pieces of text out, and again.

In: a chat request as JSON, as for /v1/chat/completions, or a plain text as what the user says.
Out: ``{"type": "delta", "text": …}`` each time there is text, ``{"type": "tool_calls", …}`` where tools are
called, then one of ``{"type": "done", "finish_reason": …, "usage": …}`` and ``{"type": "error", …}``.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from coldpress.serve.api.fields import ApiError
from coldpress.serve.api.metrics import Metrics
from coldpress.serve.api.protocol import MAX_BODY_BYTES, chat_body
from coldpress.serve.api.reply import to_json
from coldpress.serve.api.timed import Limits, begin
from coldpress.serve.engine import Engine

MAX_MESSAGE_BYTES = MAX_BODY_BYTES
GOING_AWAY = 1012
"""The code with which a WebSocket is closed because the server stops."""


def chat(
    engine: Engine, metrics: Metrics, limits: Limits
) -> Callable[[WebSocket], Awaitable[None]]:
    """The route's endpoint."""

    async def endpoint(socket: WebSocket) -> None:
        offered = socket.scope.get("subprotocols") or []
        await socket.accept(subprotocol="bearer" if "bearer" in offered else None)
        try:
            while True:
                message = await socket.receive_text()
                try:
                    await _answer(engine, metrics, limits, socket, message)
                except ApiError as error:
                    await _send(socket, {"type": "error", **error.body})
        except KeyError:  # a binary message
            return
        except WebSocketDisconnect as end:
            if end.code == GOING_AWAY:
                await socket.close(GOING_AWAY)

    return endpoint


async def _answer(
    engine: Engine, metrics: Metrics, limits: Limits, socket: WebSocket, message: str
) -> None:
    answering = await begin(engine, "chat", chat_body(message), limits, metrics)
    try:
        async for event in answering.events:
            for said in answering.reply.messages(event):
                await _send(socket, said)
    finally:
        answering.reply.cancel()


async def _send(socket: WebSocket, value: dict[str, Any]) -> None:
    await socket.send_text(to_json(value).decode())
