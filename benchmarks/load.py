"""How fast a checkpoint loads, beside every other way to load as many bytes: ``reports/load.json``.

``python -m benchmarks.load`` runs each contender in a fresh process, in turns, several times. ``--only`` renews
one part of the report and keeps the others:

    disk        page cache cold (dropped per file, checked by mincore): us, llama.cpp's modes, fio
    warm        the same with everything cached
    peers       torch.load, safetensors, run:ai streamer, fastsafetensors, transformers
    throttled   a range server and a block device that behave like cloud storage: 10 ms per request, 70 MB/s
                per stream, 600 MB/s in all (a model of 2025's S3 and lazily loaded images, not a measurement)

``--peer-python`` names an interpreter that has runai-model-streamer and fastsafetensors beside torch.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import load_model, prefix
from benchmarks.conditions import conditions
from coldpress.evaluate import page_cache

REPORT = Path(__file__).resolve().parents[1] / "reports/load.json"
PARTS = ("disk", "warm", "peers", "throttled")
LATENCY_MS, STREAM_MB_S, TOTAL_MB_S = 10, 70, 600
_OURS = ("coldpress", "coldpress-page-cache", "coldpress-memory")
_LLAMA = ("llama.cpp-mmap", "llama.cpp-read", "llama.cpp-direct")
_READERS = ("torch.load", "safetensors", "run:ai", "fastsafetensors")
_BROUGHT = ("run:ai", "fastsafetensors")
_MOST_CACHED = 0.01
Run = dict[str, Any]
Runs = dict[str, list[Run]]


class Bench:
    """Starts contenders; ``python`` is the interpreter for those that are no dependency of ours."""

    def __init__(self, peer_python: str, cpus: int = 2) -> None:
        self.peer_python = peer_python
        self.cpus = cpus

    def with_cpus(self, cpus: int) -> "Bench":
        """The same with another number of CPUs."""
        return Bench(self.peer_python, cpus)

    def run(self, name: str, path: str | Path, **environment: str) -> Run:
        """One process: seconds from its start to each milestone."""
        python = self.peer_python if name in _BROUGHT else sys.executable
        argv = [python, "-m", "benchmarks.load_contenders", name, str(path)]
        env = {**os.environ, "COLDPRESS_CACHE_BYTES": "0", "HF_HUB_OFFLINE": "1", **environment}
        allowed = set(sorted(os.sched_getaffinity(0))[: self.cpus])
        began = time.monotonic()
        done = subprocess.run(
            argv,
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
            preexec_fn=lambda: os.sched_setaffinity(0, allowed),
        )
        if done.returncode:
            return {"failed": done.stderr[-500:]}
        found: Run = json.loads(done.stdout.splitlines()[-1])
        for mark in ("open", "loaded", "first_token"):
            if mark in found:
                found[f"{mark}_s"] = round(found.pop(mark) - began, 4)
        found["read_s"] = round(found["loaded_s"] - found["open_s"], 4)
        return found

    def cold(self, name: str, folder: Path) -> Run:
        """A run that finds none of the folder's big files in the page cache."""
        left = max(_drop(path) for path in _big(folder))
        return {"cached_before": round(left, 4), **self.run(name, folder)}

    def warm(self, name: str, folder: Path) -> Run:
        """A run that finds all of them there."""
        for path in _big(folder):
            _read(path)
        return self.run(name, folder)


def _fewer(repeats: int) -> int:
    return max(2, repeats // 2)


def _big(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.stat().st_size > 1 << 20]


def _drop(path: Path) -> float:
    for _ in range(5):
        if (left := page_cache.drop(path)) <= _MOST_CACHED:
            break
        time.sleep(0.2)
    return left


def _read(path: Path) -> None:
    with path.open("rb", buffering=0) as stream:
        while stream.read(8 << 20):
            pass


def in_turns(names: Iterable[str], repeats: int, run: Any) -> Runs:
    """Every contender once per turn, in a new order each time."""
    names, order = list(names), random.Random(0)
    found: Runs = {name: [] for name in names}
    for turn in range(repeats):
        order.shuffle(names)
        for name in names:
            one = run(name)
            found[name].append(one)
            shown = {
                key: one.get(key) for key in ("read_s", "first_token_s", "failed") if key in one
            }
            print(f"turn {turn} {name}: {shown}", file=sys.stderr)
    return found


def fio_s(path: Path, depth: int) -> float:
    """Seconds that fio needs to read a file once, past the page cache."""
    argv = ["fio", "--name=read", f"--filename={path}", "--readonly", "--rw=read", "--bs=1M"]
    argv += ["--direct=1", "--ioengine=libaio", f"--iodepth={depth}", "--output-format=json"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["jobs"][0]["read"]["runtime"]) / 1e3


def disk(bench: Bench, repeats: int) -> dict[str, Any]:
    """Cold, from this machine's disk."""
    folder = load_model.checkpoint()
    depths = (1, 2, 4, 8, 16, 32)
    fio: dict[int, list[float]] = {depth: [] for depth in depths}

    def run(name: str) -> Run:
        if name != "fio":
            return bench.cold(name, folder)
        for depth in depths:
            fio[depth].append(fio_s(folder / "model.gguf", depth))
        return {}

    runs = in_turns(("fio", *_OURS, *_LLAMA), repeats, run)
    del runs["fio"]
    one = bench.with_cpus(1)
    alone = in_turns(("coldpress", *_LLAMA), _fewer(repeats), lambda name: one.cold(name, folder))
    return {"runs": runs, "fio_s": fio, "one_cpu": alone}


def warm(bench: Bench, repeats: int) -> dict[str, Any]:
    """Everything in the page cache."""
    folder = load_model.checkpoint()
    names = ("coldpress", "coldpress-tensors", *_LLAMA, "vocabulary")
    one = bench.with_cpus(1)
    return {
        "runs": in_turns(names, repeats, lambda name: bench.warm(name, folder)),
        "one_cpu": in_turns(names, _fewer(repeats), lambda name: one.warm(name, folder)),
    }


def peers(bench: Bench, repeats: int) -> dict[str, Any]:
    """Readers of as many bytes, cold and warm; transformers with the bf16 original, cold."""
    folder, tensors, original = load_model.checkpoint(), load_model.tensors(), load_model.original()

    def place(name: str) -> Path:
        return {"transformers": original, "coldpress": folder, "coldpress-tensors": folder}.get(
            name, tensors
        )

    readers = ("coldpress-tensors", *_READERS)
    return {
        "cold": in_turns(
            (*readers, "coldpress", "transformers"),
            repeats,
            lambda name: bench.cold(name, place(name)),
        ),
        "warm": in_turns(readers, repeats, lambda name: bench.warm(name, place(name))),
    }


def throttled(bench: Bench, repeats: int) -> dict[str, Any]:
    """Over the range server, and from the throttled block device."""
    with _served(load_model.checkpoint()) as address:
        http = in_turns(("coldpress",), repeats, lambda name: bench.run(name, address))
    with _device(load_model.image()) as (mounted, renew):

        def run(name: str) -> Run:
            renew()
            return bench.run(name, mounted)

        device = in_turns(
            ("coldpress", "coldpress-memory", "coldpress-page-cache", "llama.cpp-direct"),
            repeats,
            run,
        )
        # Half a minute each.
        device |= in_turns(("llama.cpp-mmap", "llama.cpp-read"), _fewer(repeats), run)
    return {
        "model": {
            "date": "2026-11",
            "latency_ms": LATENCY_MS,
            "stream_mb_s": STREAM_MB_S,
            "total_mb_s": TOTAL_MB_S,
            "device_read_ahead_kb": 128,
        },
        "http": http,
        "device": device,
    }


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    with _helper("tests.range_server", folder) as process:
        yield _line(process)


@contextmanager
def _device(image: Path) -> Iterator[tuple[Path, Any]]:
    mounted = load_model.FOLDER / "throttled"
    with _helper("benchmarks.throttled_device", image, mounted) as process:

        def renew() -> None:
            if process.stdin is not None:
                process.stdin.write("again\n")
                process.stdin.flush()
            _line(process)

        yield mounted, renew


@contextmanager
def _helper(module: str, *arguments: Path) -> "Iterator[subprocess.Popen[str]]":
    """A throttled source in a process of its own; it ends when its standard input does."""
    speed = {"latency-ms": LATENCY_MS, "stream-mb-s": STREAM_MB_S, "total-mb-s": TOTAL_MB_S}
    argv = [sys.executable, "-m", module, *map(str, arguments)]
    argv += [word for name, value in speed.items() for word in (f"--{name}", str(value))]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process


def _line(process: "subprocess.Popen[str]") -> str:
    line = process.stdout.readline() if process.stdout else ""
    if not line:
        sys.exit("the throttled source stopped")
    return line.strip()


def headline(report: dict[str, Any]) -> dict[str, float]:
    """The ratios of the parts that are there, and of ``benchmarks.prefix`` if it has run."""
    found: dict[str, float] = {}
    size = report["conditions"]["size_bytes"]
    if "disk" in report and "warm" in report:
        fio = min(median(times) for times in report["disk"]["fio_s"].values())
        limit = fio + _median(report["warm"]["runs"]["coldpress"], "first_token_s")
        cold = report["disk"]["runs"]
        ours = _median(cold["coldpress"], "first_token_s")
        found["cold_vs_fio_plus_first_token"] = ours / limit
        best = min(_median(cold[name], "first_token_s") for name in _LLAMA)
        found["cold_vs_fastest_llama_cpp_mode"] = ours / best
    if "warm" in report:
        runs = report["warm"]["runs"]
        load = median(
            run["timeline"]["load"][1] - run["timeline"]["load"][0] for run in runs["coldpress"]
        )
        found["warm_s_per_gb"] = load / (size / 1e9)
        weights = load - _median(runs["vocabulary"], "read_s")
        found["warm_s_per_gb_without_vocabulary"] = weights / (size / 1e9)
        found["warm_rss_over_weights"] = median(
            (run["VmRSS"] - run["rss_before"]) / size for run in runs["coldpress-tensors"]
        )
    if "peers" in report:
        cold, warm_ = report["peers"]["cold"], report["peers"]["warm"]
        found["speedup_vs_transformers"] = _ratio(
            cold, "transformers", "coldpress", "first_token_s"
        )
        found["speedup_vs_torch_load"] = _ratio(cold, "torch.load", "coldpress-tensors", "read_s")
        found["warm_speedup_vs_torch_load"] = _ratio(
            warm_, "torch.load", "coldpress-tensors", "read_s"
        )
    if prefix.REPORT.exists():
        shipped = json.loads(prefix.REPORT.read_text())["headline"]
        found["prefix_first_token_ratio"] = shipped["prefix_first_token_ratio"]
    if "throttled" in report:
        device, http = report["throttled"]["device"], report["throttled"]["http"]
        found["throttled_speedup_vs_mmap"] = _ratio(
            device, "llama.cpp-mmap", "coldpress", "first_token_s"
        )
        for name, runs in (("throttled", device), ("http", http)):
            # From the call until the last chunk is proven; and until a context is ready, too.
            proven = median(
                run["timeline"]["verify"][1] - run["open_s"] for run in runs["coldpress"]
            )
            ready = _median(runs["coldpress"], "read_s")
            found[f"{name}_bandwidth_share"] = size / proven / (TOTAL_MB_S * 1e6)
            found[f"{name}_bandwidth_share_until_ready"] = size / ready / (TOTAL_MB_S * 1e6)
    return {name: round(value, 4) for name, value in found.items()}


def _median(runs: list[Run], key: str) -> float:
    values = [run[key] for run in runs if key in run]
    return median(values) if values else float("nan")


def _ratio(runs: Runs, slow: str, fast: str, key: str) -> float:
    return _median(runs[slow], key) / _median(runs[fast], key)


def main() -> None:
    """Measure the parts asked for and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--out", type=Path, default=REPORT)
    asked = parser.parse_args()
    report = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    bench = Bench(asked.peer_python)
    report["conditions"] = {
        **conditions("python -m benchmarks.load"),
        "size_bytes": (load_model.checkpoint() / "model.gguf").stat().st_size,
    }
    measures = {"disk": disk, "warm": warm, "peers": peers, "throttled": throttled}
    for part in asked.only or PARTS:
        report[part] = {
            "load_average_before": os.getloadavg()[0],
            "repeats": asked.repeats,
            **measures[part](bench, asked.repeats),
        }
        report["headline"] = {**report.get("headline", {}), **headline(report)}
        # Keys of fio's depths become text in JSON: written now, they are read the same later.
        report = json.loads(json.dumps(report))
        asked.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report["headline"], indent=1))


if __name__ == "__main__":
    main()
