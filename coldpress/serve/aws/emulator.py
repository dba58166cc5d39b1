"""A Lambda on this machine: it starts the runtime as the image does, and treats it as Lambda does.

One environment takes one event at a time. It starts with the first one (a cold start), is started
anew when it has died, and is killed at the deadline. Faults can be asked for, to see what a client
makes of them.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, assert_never, cast, get_args

from coldpress.errors import UsageError
from coldpress.serve.aws.runtime_api import FunctionError
from coldpress.serve.aws.runtime_server import Call, Cut, RuntimeServer, serving, timed_out

_INIT_S = 10.0
"""Lambda kills a runtime that has not asked for an event by then, and starts it once more."""
_MAX_TIMEOUT_S = 900.0
_PARK_S = 5.0
"""So long a runtime may take from its answer to its next question before it is not frozen."""

Kind = Literal["none", "hang-up", "kill", "deadline", "freeze"]


@dataclass(frozen=True)
class Fault:
    """What goes wrong: at a chunk of every answer, or after seconds."""

    kind: Kind = "none"
    amount: float = 0

    @classmethod
    def parse(cls, text: str) -> "Fault":
        """Read ``KIND:NUMBER``.

        Raises:
            UsageError: it is none.
        """
        kind, _, amount = text.partition(":")
        good = amount.isdecimal() and int(amount) > 0
        if kind not in get_args(Kind) or good == (kind == "none") or (amount and not good):
            raise UsageError(
                f"{text!r} is no fault",
                "none, hang-up:CHUNKS, kill:CHUNKS, deadline:SECONDS, freeze:SECONDS",
            )
        return cls(cast(Kind, kind), int(amount or 0))


class Lambda:
    """A function whose runtime is ``python -m coldpress.serve ARGV``.

    Args:
        timeout_s: what one invocation may take.

    Raises:
        UsageError: Lambda has no such timeout.
    """

    def __init__(self, argv: Sequence[str], timeout_s: float, fault: Fault) -> None:
        if not 1 <= timeout_s <= _MAX_TIMEOUT_S:
            raise UsageError(f"--lambda-timeout is {timeout_s:g}", "Lambda takes 1 to 900 seconds")
        self._argv = list(argv)
        self._timeout_s = fault.amount if fault.kind == "deadline" else timeout_s
        self._fault = fault
        self._one_at_a_time = threading.Lock()
        self._environment: _Environment | None = None

    @contextlib.contextmanager
    def invoke(self, event: bytes) -> Iterator[tuple[Call, bool]]:
        """Send an event when its turn has come; yields the call, and whether it was a cold start.

        A caller who leaves early changes nothing for the function: it runs to its end.
        """
        with self._one_at_a_time:
            environment = self._environment
            if cold := environment is None or environment.dead:
                self.close()
                environment = self._environment = self._start()
            call = environment.send(event, self._timeout_s, self._cut(environment))
            try:
                yield call, cold
            finally:
                for _ in call.pieces():
                    pass
                if call.failure == timed_out(self._timeout_s):
                    environment.close()
                elif self._fault.kind == "freeze":
                    environment.freeze(self._fault.amount)

    def close(self) -> None:
        """Kill the environment, if there is one."""
        if self._environment is not None:
            self._environment.close()
            self._environment = None

    def _start(self) -> "_Environment":
        environment = _Environment(self._argv)
        if not environment.wait_for_it(_INIT_S) and not environment.dead:
            environment.close()
            # The second time it has as long as an invocation, and is paid for.
            environment = _Environment(self._argv)
            if not environment.wait_for_it(self._timeout_s) and not environment.dead:
                environment.give_up(timed_out(self._timeout_s))
        return environment

    def _cut(self, environment: "_Environment") -> Cut | None:
        match self._fault.kind:
            case "hang-up":
                gone = FunctionError("Caller.Gone", "the caller hung up")
                return Cut(int(self._fault.amount), lambda: gone)
            case "kill":
                return Cut(int(self._fault.amount), environment.kill)
            case "none" | "deadline" | "freeze":
                return None
            case _:
                assert_never(self._fault.kind)


class _Environment:
    """One runtime process and the Runtime API that it talks to."""

    def __init__(self, argv: list[str]) -> None:
        self._resources = contextlib.ExitStack()
        self._server: RuntimeServer = self._resources.enter_context(serving())
        env = {
            **os.environ,
            "AWS_LAMBDA_RUNTIME_API": self._server.address,
            "AWS_LAMBDA_FUNCTION_NAME": "function",
            "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "coldpress.serve", *argv], stdin=subprocess.DEVNULL, env=env
        )
        self._thaw_s: float | None = None
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    @property
    def dead(self) -> bool:
        """Whether its process has ended."""
        return self._process.poll() is not None

    def wait_for_it(self, seconds: float) -> bool:
        """Wait until the runtime asks for an event; false if it does not, or has ended."""
        return self._server.asked.wait(seconds) and not self.dead

    def send(self, event: bytes, seconds: float, cut: Cut | None) -> Call:
        """Give the runtime an event, once it is no longer frozen."""
        if self._thaw_s is not None:
            time.sleep(max(0.0, self._thaw_s - time.monotonic()))
            self._thaw_s = None
            self._process.send_signal(signal.SIGCONT)
        return self._server.send(event, seconds, cut)

    def freeze(self, seconds: float) -> None:
        """Stop its process when it waits for the next event, for so long at least."""
        if self.wait_for_it(_PARK_S):
            self._process.send_signal(signal.SIGSTOP)
            with contextlib.suppress(ChildProcessError):  # it has ended meanwhile
                os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)
            self._thaw_s = time.monotonic() + seconds

    def kill(self) -> FunctionError:
        """Kill its process; what callers hear of it."""
        self._process.kill()
        return _exited(self._process.wait())

    def give_up(self, failure: FunctionError) -> None:
        """Kill its process, with another reason than that it was killed."""
        self._server.give_up(failure)
        self.kill()

    def close(self) -> None:
        """Kill its process and stop listening."""
        self._process.kill()
        self._watcher.join()
        self._resources.close()

    def _watch(self) -> None:
        failure = _exited(self._process.wait())
        self._server.give_up(self._server.init_failure or failure)
        self._server.asked.set()  # nobody needs to wait for it any more


def _exited(code: int) -> FunctionError:
    how = f"signal: {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
    return FunctionError("Runtime.ExitError", f"Runtime exited with error: {how}")
