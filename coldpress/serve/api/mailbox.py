"""An answer's events on their way from the engine's thread to an event loop."""

import asyncio
from collections import deque

from coldpress.serve.generation import Delta, Event

_PACE_S = 0.025
"""Text that follows sooner is delivered together: nobody sees it, and a delivery costs as much of this
process's time as a token of a small model."""


class Mailbox:
    """Made in the event loop that takes the events."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: deque[Event] = deque()
        self._taker: asyncio.Future[None] | None = None
        self._due_s = 0.0

    def put(self, event: Event) -> None:
        """Put an event in; from any thread."""
        self._events.append(event)
        # Looked at after it was added: a taker who saw nothing before is told.
        if len(self._events) == 1 or not isinstance(event, Delta):
            self._loop.call_soon_threadsafe(self._wake)

    async def take(self, patience_s: float) -> Event | None:
        """The next event, with all text that has come since the last; None: nothing came in time."""
        ends_s = self._loop.time() + patience_s
        while not self._deliverable():
            if self._loop.time() >= ends_s:
                return None
            self._taker = self._loop.create_future()
            until_s = min(ends_s, self._due_s) if self._events else ends_s
            timer = self._loop.call_at(until_s, self._wake)
            try:
                await self._taker
            finally:
                timer.cancel()
                self._taker = None
        self._due_s = self._loop.time() + _PACE_S
        event = self._events.popleft()
        if isinstance(event, Delta):
            while self._events and isinstance(more := self._events[0], Delta):
                event += more
                self._events.popleft()
        return event

    def _deliverable(self) -> bool:
        if not self._events:
            return False
        return self._loop.time() >= self._due_s or not isinstance(self._events[-1], Delta)

    def _wake(self) -> None:
        if self._taker is not None and not self._taker.done():
            self._taker.set_result(None)
