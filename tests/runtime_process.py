"""The runtime as a process of its own, for tests: its JSON lines on stderr are its events."""

import json
import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx


class RuntimeProcess:
    """``python -m coldpress.serve``, or the Python in ``program``; stop it with ``stop``."""

    def __init__(
        self, checkpoint: Path | str, *arguments: str, program: str = "", **env: str
    ) -> None:
        run = ["-c", program] if program else ["-m", "coldpress.serve"]
        argv = [sys.executable, *run, str(checkpoint), "--threads", "1"]
        self.process = subprocess.Popen(
            [*argv, *arguments], stderr=subprocess.PIPE, env={**os.environ, **env}, text=True
        )
        self.lines: list[str] = []
        self._events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            # How the model was loaded may be said before or after "listening".
            if line.startswith("{") and (event := json.loads(line))["event"] != "loader":
                self._events.put(event)

    def event(self, name: str) -> dict[str, Any]:
        """The next event, which must be ``name``."""
        event = self.next_event()
        assert event["event"] == name
        return event

    def next_event(self) -> dict[str, Any]:
        """The next event."""
        return self._events.get(timeout=60)

    def ready_url(self) -> str:
        """Its address, once it answers; it is the first event that is waited for."""
        url = f"http://127.0.0.1:{self.event('listening')['port']}"
        while (response := httpx.get(f"{url}/readyz")).status_code == 503:
            assert response.headers["Retry-After"] == "1"
            time.sleep(0.02)
        assert response.json() == {"status": "ready"}
        return url

    def wait(self) -> int:
        """Wait for its end; the exit code."""
        code = self.process.wait(60)
        self._reader.join()
        if self.process.stderr is not None:
            self.process.stderr.close()
        return code

    def stop(self) -> int:
        """Send SIGTERM and wait; the exit code."""
        self.process.terminate()
        return self.wait()


@contextmanager
def running(checkpoint: Path | str, *arguments: str, **env: str) -> Iterator[RuntimeProcess]:
    """A process that is stopped at the end."""
    process = RuntimeProcess(checkpoint, *arguments, **env)
    try:
        yield process
    finally:
        process.stop()


def resident_mib(pid: int, weights: Path) -> float:
    """What a process has in memory, of its weights all that the page cache will hold.

    It may have mapped a copy of ``weights`` in another folder, as in a container.
    """
    beside = mapped = 0
    ours = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            ours = line.endswith(f"/{weights.name}")
        elif line.startswith("Rss:"):
            kib = int(line.split()[1])
            beside, mapped = (beside, mapped + kib) if ours else (beside + kib, mapped)
    assert mapped > 0
    return beside / 1024 + weights.stat().st_size / (1 << 20)
