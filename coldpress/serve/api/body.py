"""Bodies of requests: not more of one than is allowed, nor for longer, nor more of all together."""

import asyncio

from starlette.requests import Request

from coldpress.serve.api.fields import ApiError
from coldpress.serve.api.protocol import check_length

_SMALL_BYTES = 64 << 10
_MAX_HELD_BYTES = 64 << 20


class Bodies:
    """Reads bodies. Those that are not small share what may be held at a time.

    Args:
        seconds: how long one may take to arrive.
    """

    def __init__(self, seconds: int) -> None:
        self._seconds = seconds
        self._held = 0

    async def read(self, request: Request) -> bytes:
        """Read one.

        Raises:
            ApiError: 408, 413; 503 where too many arrive at once.
        """
        check_length(int(request.headers.get("content-length", 0)))
        body = bytearray()
        held = 0
        try:
            async with asyncio.timeout(self._seconds):
                async for piece in request.stream():
                    body += piece
                    check_length(len(body))
                    if len(body) > _SMALL_BYTES:
                        held += len(piece)
                        self._held += len(piece)
                    if held and self._held > _MAX_HELD_BYTES:
                        raise ApiError(
                            503, "too many large bodies arrive", "overloaded", retry_after_s=1
                        )
        except TimeoutError as error:
            message = f"the body took over {self._seconds} s"
            raise ApiError(408, message, "body_too_slow") from error
        finally:
            self._held -= held
        return bytes(body)
