"""Guesses at what an answer goes on with, which the model then judges several at a time.

A guess costs nothing but time: what the model would not have chosen itself is dropped, so the answer
is that without guesses, token for token.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Protocol, get_args

Speculate = Literal["off", "lookup", "draft"]
SPECULATE: tuple[Speculate, ...] = get_args(Speculate)

MAX_GUESSES = 15
_NGRAM = 3
"""A text that repeats itself is recognized by so many tokens."""
_WEIGHT = 0.1
"""Of the newest among what was seen."""
_HOPE = 0.7
"""How likely a guess is right, before any was seen."""


class Guesser(Protocol):
    """Guesses at the next tokens of an answer."""

    def guess(self, tokens: list[int], most: int) -> list[int]:
        """What may come after the tokens of a prompt and its answer; at most so many."""


class PromptLookup:
    """Guesses that what came after the last few tokens before comes after them again.

    Of one answer: its tokens grow from call to call.
    """

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}
        self._indexed = _NGRAM

    def guess(self, tokens: list[int], most: int) -> list[int]:
        """See ``Guesser``."""
        for end in range(self._indexed, len(tokens)):
            self._after[tuple(tokens[end - _NGRAM : end])] = end
        self._indexed = max(self._indexed, len(tokens))
        at = self._after.get(tuple(tokens[-_NGRAM:]), len(tokens))
        return tokens[at : at + most]


class Step:
    """One step of an answer: the guesses to be decoded with its last token, and what came of them."""

    def __init__(self, guesser: Guesser, most: int) -> None:
        self._guesser = guesser
        self._most = most
        self.guesses: list[int] = []
        self.n_right = 0

    def guess(self, tokens: list[int], most: int) -> None:
        """Guess, where it pays."""
        if (most := min(most, self._most)) > 0:
            self.guesses = self._guesser.guess(tokens, most)


class Speculation:
    """How far one answer is guessed ahead: as many tokens as make the most of them per second.

    It learns from what it sees: how often guesses are right, and what a step takes by its rows.
    """

    def __init__(self, guesser: Guesser) -> None:
        self._guesser = guesser
        self._right = _HOPE
        self._seconds: dict[int, float] = {}

    @contextmanager
    def step(self) -> Iterator[Step]:
        """Time a step and learn from it."""
        step = Step(self._guesser, self._most())
        began = time.monotonic()
        yield step
        self._learn(len(step.guesses), step.n_right, time.monotonic() - began)

    def _most(self) -> int:
        if 1 not in self._seconds:
            return 0
        return max(range(MAX_GUESSES + 1), key=self._tokens_per_s)

    def _tokens_per_s(self, guessed: int) -> float:
        expected = sum(self._right**place for place in range(guessed + 1))
        return expected / self._expected_s(guessed + 1)

    def _expected_s(self, rows: int) -> float:
        """What a step over so many rows takes: between those that were seen, or as the next below."""
        below = max(seen for seen in self._seconds if seen <= rows)
        above = min((seen for seen in self._seconds if seen > rows), default=below)
        share = (rows - below) / max(above - below, 1)
        return self._seconds[below] + share * (self._seconds[above] - self._seconds[below])

    def _learn(self, n_guessed: int, n_right: int, seconds: float) -> None:
        known = self._seconds.get(n_guessed + 1, seconds)
        # The least is what it takes; now and then something else takes the processor.
        self._seconds[n_guessed + 1] = min(known * (1 + _WEIGHT), seconds)
        for _ in range(n_right):
            self._right += _WEIGHT * (1 - self._right)
        if n_right < n_guessed:
            self._right -= _WEIGHT * self._right
        elif not n_guessed:
            # A text may begin to repeat itself: what disappointed is slowly tried again.
            self._right += _WEIGHT * _WEIGHT * (_HOPE - self._right)


def n_common(one: list[int], other: list[int]) -> int:
    """With how many equal tokens two lists begin."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))
