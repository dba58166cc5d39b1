"""What ``coldpress plan`` says of three sizes, and what podman then shows of their images.

Containers as the images are meant to run: not root, read-only, with the memory of a Lambda of two vCPUs, which
this machine has, and one sequence as there; the files in the page cache. The plan is asked before it is built.
"""

import contextlib
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import load_model, serve_models
from benchmarks.serve_client import Answer, ask, body, until_answered
from coldpress.package import PackageOptions, package
from coldpress.plan import Figure, PlanOptions, Row, plan
from tests import containers
from tests.runtime_process import resident_mib

_PROMPT, _ANSWER, _ANSWERS, _STARTS = 20, 64, 5, 3
_MEDIUM_LAYERS = 4
_MEMORY = "3538MB"  # 2 vCPUs
_WEIGHTS = "model.gguf"


@dataclass(frozen=True)
class Found:
    """What a container did: the seconds to its first token, its tok/s, its memory after the answers."""

    cold_start_s: float
    tok_per_s: float
    resident_mib: float


def compare(scratch: Path) -> list[dict[str, Any]]:
    """Plan, build and run each size."""
    sizes: list[tuple[str, serve_models.Name, Path]] = [
        ("demo", "demo", serve_models.folder("demo")),
        ("1b, 4 layers", "1b", load_model.checkpoint(_MEDIUM_LAYERS)),
        ("1b", "1b", serve_models.folder("1b")),
    ]
    rows = []
    with containers.store() as store:
        for label, name, checkpoint in sizes:
            options = PlanOptions(targets=("lambda",), memory=_MEMORY, storage="page-cache")
            row = plan(checkpoint, options).rows[0]
            made = package(checkpoint, scratch / label, PackageOptions(target="lambda"))
            image = store.load(made.archive)
            made.archive.unlink()
            weights = checkpoint / _WEIGHTS
            runs = [_run(store, image, row, name, weights) for _ in range(_STARTS)]
            rows.append({"model": label, **_compared(row, checkpoint, runs)})
            print(rows[-1], file=sys.stderr)
    return rows


def _compared(row: Row, checkpoint: Path, runs: list[Found]) -> dict[str, Any]:
    names = (_WEIGHTS, "model.index.json")
    size = sum((checkpoint / name).stat().st_size for name in names)
    found = {
        "cold_start_s": median(run.cold_start_s for run in runs),
        "tok_per_s": median(run.tok_per_s for run in runs),
        "resident_mib": median(run.resident_mib for run in runs),
    }
    said: dict[str, Figure | None] = {name: getattr(row, name) for name in found}
    planned = {name: figure.value for name, figure in said.items() if figure is not None}
    return {
        "size_bytes": size,
        "planned_size_bytes": int(row.size_bytes.value),
        "memory_mib": row.memory_mib,
        "found": found,
        "planned": planned,
        "error_pct": {
            name: abs(100 * (value / found[name] - 1)) for name, value in planned.items()
        },
    }


def _run(
    store: containers.Store, image: str, row: Row, name: serve_models.Name, weights: Path
) -> Found:
    port = containers.free_port()
    bias = serve_models.end_bias(name)
    prompts = serve_models.prompts(name, _PROMPT, range(_ANSWERS + 1))
    asked = [body(prompt, _ANSWER, bias) for prompt in prompts]
    options = ["--memory", f"{row.memory_mib}m", "--env", f"PORT={port}"]
    said = io.StringIO()
    with (
        contextlib.redirect_stdout(said),
        store.container(image, ["--parallel", "1"], options) as process,
    ):
        until_answered(port, asked[0], process)
        answers = [ask(port, each) for each in asked[1:]]
        resident = resident_mib(_pid(port), weights)
    lines = (line for line in said.getvalue().splitlines() if line.startswith('{"event"'))
    (start,) = [event for event in map(json.loads, lines) if event["event"] == "cold_start"]
    return Found(start["first_token_s"], median(map(_rate, answers)), resident)


def _rate(answer: Answer) -> float:
    return (_ANSWER - 1) / (answer.end_s - answer.first_s)


def _pid(port: int) -> int:
    """The runtime's process, as the host numbers it."""
    mine = f"PORT={port}".encode()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # no process, or one that has just ended
            argv = (entry / "cmdline").read_bytes().split(b"\0")
            environment = (entry / "environ").read_bytes().split(b"\0")
            if b"coldpress.serve" in argv and mine in environment:
                return int(entry.name)
    raise SystemExit("the container's process is not to be found")


def errors(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The largest error of each figure over the sizes, in %."""
    names = {"memory": "resident_mib", "tok_s": "tok_per_s", "cold_start": "cold_start_s"}
    return {
        f"plan_{short}_error_pct": max(row["error_pct"][name] for row in rows)
        for short, name in names.items()
    }
