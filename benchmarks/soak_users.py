"""The soak's clients as threads, and the books that they keep of what they meet."""

import random
import sys
import threading
import time
from collections import Counter
from http.client import HTTPException
from typing import Any

from websockets.exceptions import WebSocketException

from benchmarks.soak_clients import Client, Outcome, RefusedError, is_chat
from benchmarks.soak_requests import Case, malformed
from coldpress.errors import ToolError

ACTIONS = {"stream": 8, "whole": 4, "websocket": 4, "slow": 2, "cancel": 4, "malformed": 2}
"""What a client does, and how often beside the others."""
Action = str
_TOLD = 20


class Books:
    """What happened; clients of several threads write into it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.done: Counter[str] = Counter()
        self.seconds: dict[str, list[float]] = {}
        self.mismatched: list[dict[str, Any]] = []
        self.broken: list[str] = []

    def count(self, what: str) -> None:
        """One more of these."""
        with self._lock:
            self.done[what] += 1

    def took(self, what: str, seconds: float) -> None:
        """A completed request's time."""
        with self._lock:
            self.seconds.setdefault(what, []).append(seconds)

    def broke(self, what: str) -> None:
        """Something that must not happen."""
        with self._lock:
            self.broken.append(what)
            if len(self.broken) <= _TOLD:
                print(f"broken: {what}", file=sys.stderr)

    def differs(self, case: Case, action: str, alone: Outcome, now: object) -> None:
        """An answer that is not its solo run's."""
        with self._lock:
            found = {"case": case.number, "kind": case.kind, "action": action}
            self.mismatched.append({**found, "alone": alone.text, "now": str(now)})
            print(f"mismatched: {self.mismatched[-1]}", file=sys.stderr)


class User(threading.Thread):
    """One client: a draw, what it says, and again until the time is up."""

    def __init__(
        self, number: int, client: Client, books: Books, alone: dict[Case, Outcome], until_s: float
    ) -> None:
        super().__init__(name=f"client {number}")
        self._random = random.Random(number)
        self._client, self._books, self._alone, self._until_s = client, books, alone, until_s
        self._cases = list(alone)
        self._bad = malformed()

    def run(self) -> None:
        """Ask until the time is up."""
        while time.monotonic() < self._until_s:
            (action,) = self._random.choices([*ACTIONS], [*ACTIONS.values()])
            self.act(action)

    def act(self, action: Action) -> None:
        """Do one thing and put it into the books."""
        try:
            self._act(action)
        except RefusedError as refused:
            self._refused(action, refused)
        except (OSError, HTTPException, WebSocketException, ToolError) as error:
            self._books.broke(f"{action}: {error!r}")
        except (
            Exception
        ) as error:  # a client that dies of our own mistake would only lower the load
            self._books.broke(f"{action}: our own mistake: {error!r}")

    def _act(self, action: Action) -> None:
        if action == "malformed":
            bad = self._random.choice(self._bad)
            if (status := self._client.malformed(bad)) != bad.status:
                self._books.broke(f"{bad.what}: status {status} instead of {bad.status}")
            self._books.count(action)
            return
        case = self._random.choice(self._cases)
        if action == "cancel":
            text = self._client.cancelled(case, self._random.randint(1, 12))
            if not self._alone[case].text.startswith(text):
                self._books.differs(case, action, self._alone[case], text)
            self._books.count(action)
            return
        if action == "websocket" and not is_chat(case):
            action = "stream"
        began_s = time.monotonic()
        match action:
            case "stream":
                now = self._client.streamed(case)
            case "slow":
                now = self._client.streamed(case, slow=True)
            case "whole":
                now = self._client.whole(case)
            case _:
                now = self._client.over_websocket(case)
        self._books.took("slow" if action == "slow" else case.kind, time.monotonic() - began_s)
        self._books.count(action)
        if now != self._alone[case]:
            self._books.differs(case, action, self._alone[case], now)

    def _refused(self, action: Action, refused: RefusedError) -> None:
        if refused.status not in {429, 503} or refused.retry_after is None:
            self._books.broke(f"{action}: {refused}, Retry-After {refused.retry_after}")
            return
        self._books.count("refused")
        # Sooner than told: the load is to stay above what fits.
        time.sleep(self._random.uniform(0.2, 0.5))
