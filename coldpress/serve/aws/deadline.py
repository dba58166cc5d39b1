"""One invocation's answer, which ends in time to be delivered before Lambda's deadline."""

import queue
import time
from collections.abc import Iterator
from contextlib import contextmanager

from coldpress.serve.api.reply import Reply
from coldpress.serve.api.sampling_fields import Kind
from coldpress.serve.aws import emf
from coldpress.serve.aws.runtime_api import Invocation
from coldpress.serve.engine import Engine
from coldpress.serve.generation import Delta, Done, Event

_MARGIN_S = 1.0
"""An answer ends so long before the deadline, to be delivered whole."""


def left_s(invocation: Invocation) -> float:
    """Seconds that an answer may still take."""
    return max(0.0, invocation.deadline_s - _MARGIN_S - time.time())


@contextmanager
def replying(
    engine: Engine, kind: Kind, body: bytes, invocation: Invocation
) -> Iterator[tuple[Reply, Iterator[Event]]]:
    """A reply and its events; it is cancelled at the end, if it is not done.

    Raises:
        ApiError: as ``Reply``.
    """
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    reply = Reply(engine, kind, body, events.put)
    try:
        yield reply, _until_deadline(engine, events, reply, invocation)
    finally:
        reply.cancel()


def _until_deadline(
    engine: Engine,
    events: "queue.SimpleQueue[Event]",
    reply: Reply,
    invocation: Invocation,
) -> Iterator[Event]:
    """The engine's events; short of time, an end as if the answer had reached its length."""
    watch = emf.Stopwatch()
    while True:
        try:
            event = events.get(timeout=left_s(invocation))
        except queue.Empty:
            event = reply.cut()
        watch.text()
        yield event
        if isinstance(event, Done):
            told = (event.prompt_tokens, event.made_tokens)
            watch.emit(engine.model.name, invocation.request_id, *told)
        if not isinstance(event, Delta):
            return
