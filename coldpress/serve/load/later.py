"""A call that runs in a thread of its own; its result, or what it raised, is taken later."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Later(Generic[T]):
    """Calls ``work`` now; ``result`` waits for it."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._error: BaseException | None = None
        self._value: list[T] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value.append(self._work())
        except BaseException as error:
            self._error = error

    def result(self) -> T:
        """What ``work`` returned; raises what it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._value[0]
