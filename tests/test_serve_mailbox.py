"""Events from a thread to an event loop: none lost, none reordered, text together that comes together."""

import asyncio
import threading
import time

import pytest

from coldpress.serve.api import mailbox
from coldpress.serve.api.mailbox import Mailbox
from coldpress.serve.generation import Delta, Done, Event, Failed, TokenLogprob

DONE = Done("stop", 3, 2)


async def _all(box: Mailbox) -> list[Event]:
    taken: list[Event] = []
    while not taken or isinstance(taken[-1], Delta):
        event = await box.take(60)
        assert event is not None
        taken.append(event)
    return taken


@pytest.mark.parametrize("pace_s", [0.0, 0.0005, 0.01])
def test_no_event_is_lost_between_threads(monkeypatch: pytest.MonkeyPatch, pace_s: float) -> None:
    monkeypatch.setattr(mailbox, "_PACE_S", pace_s)
    count = 3000

    async def go() -> list[Event]:
        box = Mailbox()

        def put() -> None:
            for number in range(count):
                top = (TokenLogprob(b"x", float(number), ()),)
                box.put(Delta(f"{number} ", top, number + 1))
                if number % 100 == 0:
                    time.sleep(0.001)  # the taker empties the box now and then
            box.put(DONE)

        thread = threading.Thread(target=put)
        thread.start()
        taken = await _all(box)
        thread.join()
        return taken

    taken = asyncio.run(go())
    deltas = [event for event in taken if isinstance(event, Delta)]
    assert taken[-1] is DONE and len(deltas) == len(taken) - 1
    assert "".join(each.text for each in deltas) == "".join(f"{n} " for n in range(count))
    logprobs = [each.logprob for delta in deltas for each in delta.logprobs]
    assert logprobs == [float(number) for number in range(count)]
    assert [each.completion_tokens for each in deltas] == [
        sum(map(len, (one.logprobs for one in deltas[: n + 1]))) for n in range(len(deltas))
    ]


def test_text_within_the_pace_comes_together_and_the_end_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mailbox, "_PACE_S", 3600.0)

    async def go() -> None:
        box = Mailbox()
        box.put(Delta("first", (), 1))
        assert await box.take(60) == Delta("first", (), 1)
        box.put(Delta("a", (), 2))
        box.put(Delta("b", (), 3))
        assert await box.take(0) is None  # it is not due before an hour
        box.put(Failed("why"))
        assert await box.take(60) == Delta("ab", (), 3)
        assert await box.take(60) == Failed("why")

    asyncio.run(go())


def test_who_waits_is_told_of_the_end_from_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "_PACE_S", 3600.0)

    async def go() -> list[Event]:
        box = Mailbox()
        box.put(Delta("a", (), 1))
        waiting = asyncio.create_task(_all(box))
        await asyncio.sleep(0)

        def end() -> None:
            box.put(Delta("b", (), 2))
            box.put(DONE)

        await asyncio.to_thread(end)
        return await waiting

    taken = asyncio.run(asyncio.wait_for(go(), 60))
    assert "".join(each.text for each in taken if isinstance(each, Delta)) == "ab"
    assert taken[-1] is DONE


def test_nothing_in_time() -> None:
    async def go() -> None:
        assert await Mailbox().take(0.001) is None

    asyncio.run(go())
