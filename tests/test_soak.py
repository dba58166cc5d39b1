"""The soak finds what it looks for: wrong answers, wrong refusals, memory that grows."""

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.soak import Memory
from benchmarks.soak_clients import Outcome, RefusedError
from benchmarks.soak_requests import CHAT, Case, Malformed, malformed
from benchmarks.soak_users import ACTIONS, Books, User

CASE = Case(0, "chat", CHAT, {})
ALONE = Outcome("one two three", (), "stop")


class Server:
    """Answers every client with ``said``, or with what is raised."""

    def __init__(self, said: Outcome, refused: RefusedError | None = None, status: int = 0) -> None:
        self.said, self.refused, self.status = said, refused, status

    def streamed(self, _case: Case, *, slow: bool = False) -> Outcome:
        if self.refused:
            raise self.refused
        return self.said

    def whole(self, case: Case) -> Outcome:
        return self.streamed(case)

    over_websocket = whole

    def cancelled(self, case: Case, _pieces: int) -> str:
        return self.streamed(case).text[:5]

    def malformed(self, bad: Malformed) -> int:
        return self.status or bad.status


def _acted(server: Any, actions: Any = ACTIONS) -> Books:
    books = Books()
    user = User(0, server, books, {CASE: ALONE}, until_s=0)
    for action in actions:
        user.act(action)
    return books


def test_equal_answers_and_due_refusals_are_no_finding() -> None:
    books = _acted(Server(ALONE))
    assert not books.mismatched and not books.broken
    assert books.done.keys() == ACTIONS.keys()
    for status in (429, 503):
        refused = _acted(Server(ALONE, RefusedError(status, "1", b"")), ["stream", "cancel"])
        assert refused.done == {"refused": 2} and not refused.broken


@pytest.mark.parametrize(
    "said",
    [
        replace(ALONE, text="one two four"),
        replace(ALONE, text="two"),
        replace(ALONE, reason="length"),
        replace(ALONE, calls=(("f", "{}"),)),
    ],
)
def test_another_answer_is_a_mismatch(said: Outcome) -> None:
    actions = ["stream", "slow", "whole", "websocket"]
    assert len(_acted(Server(said), actions).mismatched) == len(actions)


def test_a_cancelled_stream_must_begin_as_alone() -> None:
    assert not _acted(Server(replace(ALONE, text="one tXX")), ["cancel"]).mismatched
    assert _acted(Server(replace(ALONE, text="oneXtwo")), ["cancel"]).mismatched


@pytest.mark.parametrize(
    "refused", [RefusedError(429, None, b""), RefusedError(500, "1", b""), OSError("cut off")]
)
def test_other_refusals_and_broken_connections_are_findings(refused: Any) -> None:
    assert len(_acted(Server(ALONE, refused), ["stream", "cancel"]).broken) == 2


def test_a_bad_request_must_get_its_own_status() -> None:
    assert _acted(Server(ALONE, status=200), ["malformed"]).broken
    assert {bad.status for bad in malformed()} >= {400, 401, 404, 405}


def test_growth_is_measured_after_the_warm_up() -> None:
    memory = Memory(0)
    # Doubles while warming up, then grows by a tenth.
    memory.samples = [(float(s), 50 if s < 60 else 100 + (s - 60) // 174) for s in range(1800)]
    found = memory.growth()
    assert (found["before_bytes"], found["after_bytes"]) == (100, 109)
    assert found["growth_pct"] == pytest.approx(9)
