"""An answer's events, for so long as it may take."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool

from coldpress.serve.api.metrics import Metrics
from coldpress.serve.api.reply import Reply, check_ready
from coldpress.serve.api.sampling_fields import Kind
from coldpress.serve.engine import Engine
from coldpress.serve.generation import Delta, Event


@dataclass(frozen=True)
class Answering:
    """A reply under way and its events; what is put into ``queue`` comes among them."""

    reply: Reply
    queue: "asyncio.Queue[Event]"
    events: AsyncIterator[Event]


async def begin(
    engine: Engine, kind: Kind, body: bytes, seconds: float, metrics: Metrics
) -> Answering:
    """Submit a request to the engine; the answer ends after so many seconds.

    Raises:
        ApiError: as ``Reply``.
    """
    check_ready(engine)
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[Event] = asyncio.Queue()

    def emit(event: Event) -> None:
        loop.call_soon_threadsafe(queue.put_nowait, event)

    # A long prompt takes a while to tokenize: not in the event loop.
    reply = await run_in_threadpool(Reply, engine, kind, body, emit)
    return Answering(reply, queue, _until(queue, reply, seconds, metrics))


async def _until(
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
