"""Connections that do not wait for ever: for a request's headers, for the rest of an unread body, for pongs.

uvicorn limits how long a connection may idle between requests, and nothing else; that a client never
reads is seen by the kernel (TCP_USER_TIMEOUT, see ``http.serve``).
"""

import asyncio
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from coldpress.serve.api.websocket import GOING_AWAY

_MAX_UNSENT_BYTES = 1 << 20
_MAX_WAITING = 256
_REFUSAL = b"HTTP/1.1 %b\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class HttpConnection(H11Protocol):
    """A connection whose next request must be there, but for its body, within ``timeout_keep_alive``.

    Where too many wait, the oldest is given up, so that they never use up what the process may open.
    """

    waiting: ClassVar[dict[Any, asyncio.TimerHandle]] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn narrows it
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._wait_no_more()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Wait no more when a request has begun."""
        super().data_received(data)
        if self._answering:
            self._wait_no_more()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Wait no more: the WebSocket has patience of its own."""
        self._wait_no_more()
        super().handle_websocket_upgrade(event)

    def on_response_complete(self) -> None:
        """Wait for the next request.

        What is left of an unread body is thrown away meanwhile: closing at once would be a reset,
        and the client might not see the answer.
        """
        super().on_response_complete()
        if not self._answering:
            self._wait()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing, or not enough, has come since the last answer."""
        self._give_up()

    def _wait(self) -> None:
        self._wait_no_more()
        self.waiting[self] = self.loop.call_later(self.timeout_keep_alive, self._give_up)
        if len(self.waiting) > _MAX_WAITING:
            oldest = next(iter(self.waiting))
            oldest._wait_no_more()
            oldest.transport.abort()

    def _wait_no_more(self) -> None:
        if timer := self.waiting.pop(self, None):
            timer.cancel()

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _give_up(self) -> None:
        if self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]:
            self.transport.write(_REFUSAL % b"408 Request Timeout")
        self.transport.close()


class WebSocketConnection(WebSocketsSansIOProtocol):
    """A WebSocket whose client cannot make us hold pongs without end, nor wait after a bad handshake."""

    def data_received(self, data: bytes) -> None:
        """Take bytes; a handshake that websockets cannot read is refused, which uvicorn forgets."""
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            self.transport.write(_REFUSAL % b"400 Bad Request")
            self.transport.close()

    def shutdown(self) -> None:
        """Tell the endpoint, which closes when it has finished its answer; uvicorn would cut it off."""
        if not self.handshake_complete or self.close_sent:
            super().shutdown()
            return
        self.stop_keepalive()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": GOING_AWAY, "reason": None})

    def handle_ping(self) -> None:
        """Answer, unless what was sent before is not read."""
        if self.transport.get_write_buffer_size() > _MAX_UNSENT_BYTES:
            self.transport.abort()
        else:
            super().handle_ping()
