"""An answer's events, for so long as it may take."""

import asyncio
import time
from collections.abc import AsyncIterator

from coldpress.serve.api.metrics import Metrics
from coldpress.serve.api.reply import Reply
from coldpress.serve.generation import Delta, Event


async def until(
    events: asyncio.Queue[Event], reply: Reply, seconds: float, metrics: Metrics
) -> AsyncIterator[Event]:
    """A reply's events; when its time is up, an end as if the answer had reached its length."""
    began = time.monotonic()
    first = True
    while True:
        try:
            left = seconds - (time.monotonic() - began)
            event = await asyncio.wait_for(events.get(), max(0.0, left))
        except TimeoutError:
            event = reply.cut()
        if first:
            metrics.first_token(time.monotonic() - began)
            first = False
        metrics.done(event)
        yield event
        if not isinstance(event, Delta):
            return
