"""Half an hour at twice the capacity: does each stream equal its solo run, and does memory stay flat?

``python -m benchmarks.soak`` starts the real server on the demo model with four sequences and a queue of eight,
notes what each of a pool of requests answers alone, then lets twice as many clients as fit loose on it: they read,
read slowly, leave in the middle, chat over WebSockets and send nonsense. Its part of ``reports/serve.json``:

    mismatched   streams that differ from their solo run, with both texts and the first token that differs
    broken       answers that broke off, refusals of another kind than 429 or 503 with Retry-After, bad requests
                 that got another status than theirs
    latency_s    of completed requests, by kind, from asking to the last byte; slow readers apart

The process ends with 1 if anything is mismatched or broken, or the server did not survive.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmarks import serve_models, serve_report
from benchmarks.serve_servers import free_port
from benchmarks.soak_clients import Client, Outcome
from benchmarks.soak_requests import CONTEXT, TEMPLATE, Case, pool
from benchmarks.soak_users import Books, User

_PARALLEL, _QUEUE = 4, 8
_CLIENTS = 2 * (_PARALLEL + _QUEUE)
_RSS_EVERY_S = 2.0
_WARM_UP_S = 60.0
_SHOWN, _SHOWN_SAMPLES = 20, 60


class Memory(threading.Thread):
    """Samples a process's VmRSS until it is told to stop."""

    def __init__(self, pid: int) -> None:
        super().__init__()
        self._path = Path(f"/proc/{pid}/status")
        self._enough = threading.Event()
        self._began_s = time.monotonic()
        self.samples: list[tuple[float, int]] = []

    def run(self) -> None:
        """Sample."""
        while not self._enough.wait(_RSS_EVERY_S):
            text = self._path.read_text()
            found = re.search(r"VmRSS:\s+(\d+) kB", text)
            if found is None:  # it has ended
                return
            self.samples.append((time.monotonic() - self._began_s, int(found[1]) * 1024))

    def stop(self) -> None:
        """Take no more samples."""
        self._enough.set()
        self.join()

    def growth(self) -> dict[str, Any]:
        """The median of the last tenth against that of the first tenth after the warm-up."""
        last_s = self.samples[-1][0]
        warm_s = min(_WARM_UP_S, last_s / 4)
        warm = [size for at_s, size in self.samples if at_s >= warm_s]
        tenth = max(1, len(warm) // 10)
        before, after = median(warm[:tenth]), median(warm[-tenth:])
        return {
            "warm_up_s": warm_s,
            "before_bytes": before,
            "after_bytes": after,
            "largest_bytes": max(warm),
            "growth_pct": 100 * (after / before - 1),
            "samples": self.samples[:: max(1, len(self.samples) // _SHOWN_SAMPLES)],
        }


@contextmanager
def _server(folder: Path, key: str) -> "Iterator[tuple[subprocess.Popen[bytes], int]]":
    keys, log = folder / "keys", folder / "server.log"
    keys.write_text(key + "\n")
    model = serve_models.with_template(serve_models.folder("demo"), TEMPLATE, folder / "checkpoint")
    port = free_port()
    argv = [sys.executable, "-m", "coldpress.serve", str(model)]
    argv += ["--port", str(port), "--parallel", str(_PARALLEL), "--queue", str(_QUEUE)]
    argv += ["--context", str(CONTEXT), "--api-keys", str(keys), "--quiet"]
    with log.open("wb") as said:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        try:
            yield process, port
        finally:
            process.terminate()
            process.wait(60)
            print(log.read_text(errors="replace")[-1000:], file=sys.stderr)


def _wait_ready(process: "subprocess.Popen[bytes]", client: Client) -> None:
    while process.poll() is None:
        try:
            if b"ready" in client.get("/readyz"):
                return
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"the server ended with {process.returncode}")


def _alone(client: Client, books: Books) -> dict[Case, Outcome]:
    """What each case answers when nobody else is there; asked in two ways, which must agree."""
    found: dict[Case, Outcome] = {}
    for case in pool():
        found[case] = client.streamed(case)
        if (whole := client.whole(case)) != found[case]:
            books.differs(case, "alone, whole", found[case], whole)
    return found


def _parting(client: Client, one: str, other: str) -> int:
    """The first token in which two texts differ."""
    tokens = [json.loads(client.get("/tokenize", {"content": t}))["tokens"] for t in (one, other)]
    return next((i for i, (a, b) in enumerate(zip(*tokens, strict=False)) if a != b), -1)


def _latency(seconds: list[float]) -> dict[str, float]:
    cuts = quantiles(seconds, n=100, method="inclusive") if len(seconds) > 1 else seconds * 99
    return {"n": len(seconds), "p50": cuts[49], "p99": cuts[98], "max": max(seconds)}


def soak(minutes: float, folder: Path) -> dict[str, Any]:
    """Run it; the part for the report."""
    key = os.urandom(8).hex()
    books = Books()
    with _server(folder, key) as (process, port):
        client = Client(port, key)
        _wait_ready(process, client)
        alone = _alone(client, books)
        print(f"{len(alone)} solo runs; {_CLIENTS} clients for {minutes} min", file=sys.stderr)
        memory = Memory(process.pid)
        memory.start()
        until_s = time.monotonic() + 60 * minutes
        users = [User(number, client, books, alone, until_s) for number in range(_CLIENTS)]
        for user in users:
            user.start()
        for user in users:
            user.join()
        memory.stop()
        if process.poll() is not None:
            raise SystemExit(f"the server ended with {process.returncode}")
        for case, expected in alone.items():  # and the next requests are served
            if (after := client.streamed(case)) != expected:
                books.differs(case, "alone, afterwards", expected, after)
        for found in books.mismatched:
            found["first_token_that_differs"] = _parting(client, found["alone"], found["now"])
        running = re.search(rb"^coldpress_running\S* (\S+)", client.get("/metrics"), re.MULTILINE)
    if process.returncode:
        books.broke(f"after SIGTERM the server ended with {process.returncode}")
    return {
        "minutes": minutes,
        "clients": _CLIENTS,
        "parallel": _PARALLEL,
        "queue": _QUEUE,
        "pool": len(alone),
        "done": dict(sorted(books.done.items())),
        "running_afterwards": float(running[1]) if running else None,
        "mismatched": len(books.mismatched),
        "mismatches": books.mismatched[:_SHOWN],
        "broken": len(books.broken),
        "breaks": books.broken[:_SHOWN],
        "latency_s": {kind: _latency(taken) for kind, taken in sorted(books.seconds.items())},
        "rss": memory.growth(),
    }


def main() -> int:
    """Soak and write the part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    asked = parser.parse_args()
    quiet = serve_report.Quiet()
    with tempfile.TemporaryDirectory() as folder:
        part = soak(asked.minutes, Path(folder))
    part["others_cpus"] = quiet.others_cpus()
    serve_report.update(
        "soak",
        f"python -m benchmarks.soak --minutes {asked.minutes:g}",
        part,
        {
            "soak_minutes": part["minutes"],
            "soak_mismatched_streams": part["mismatched"],
            "soak_rss_growth_pct": part["rss"]["growth_pct"],
        },
    )
    print(json.dumps({key: part[key] for key in ("done", "broken", "latency_s")}, indent=1))
    return int(bool(part["mismatched"] or part["broken"]))


if __name__ == "__main__":
    sys.exit(main())
