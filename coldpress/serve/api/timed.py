"""An answer's events, for so long as it may take."""

import math
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool

from coldpress.serve.api.mailbox import Mailbox
from coldpress.serve.api.metrics import Metrics
from coldpress.serve.api.reply import Reply, check_ready
from coldpress.serve.api.sampling_fields import Kind
from coldpress.serve.engine import Engine
from coldpress.serve.generation import Delta, Event

_LOOK_S = 0.5
"""So often an answer that waits looks whether the server is closing."""


class Closing:
    """When a server that was told to stop must have ended its answers."""

    def __init__(self) -> None:
        self._at_s = math.inf

    def begin(self, seconds: float) -> None:
        """All answers end within so many seconds."""
        self._at_s = time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        """Seconds until then."""
        return self._at_s - time.monotonic()


@dataclass(frozen=True)
class Limits:
    """How long an answer may take."""

    answer_s: float
    closing: Closing


@dataclass(frozen=True)
class Answering:
    """A reply under way and its events; what is put into ``mailbox`` comes among them."""

    reply: Reply
    mailbox: Mailbox
    events: AsyncIterator[Event]


async def begin(
    engine: Engine, kind: Kind, body: bytes, limits: Limits, metrics: Metrics
) -> Answering:
    """Submit a request to the engine; the answer is cut when its time is up.

    Raises:
        ApiError: as ``Reply``.
    """
    check_ready(engine)
    mailbox = Mailbox()
    # A long prompt takes a while to tokenize: not in the event loop.
    reply = await run_in_threadpool(Reply, engine, kind, body, mailbox.put)
    return Answering(reply, mailbox, _until(mailbox, reply, limits, metrics))


async def _until(
    mailbox: Mailbox, reply: Reply, limits: Limits, metrics: Metrics
) -> AsyncIterator[Event]:
    """A reply's events; when its time is up, the end of a cut answer."""
    began = time.monotonic()
    first = True
    while True:
        left = min(began + limits.answer_s - time.monotonic(), limits.closing.left_s)
        event = await mailbox.take(max(0.0, min(left, _LOOK_S)))
        if event is None:
            if left > _LOOK_S:
                continue
            event = reply.cut()
        if first:
            metrics.first_token(time.monotonic() - began)
            first = False
        metrics.done(event)
        yield event
        if not isinstance(event, Delta):
            return
