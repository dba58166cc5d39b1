"""KL divergence as llama.cpp itself measures it: ``llama-perplexity --kl-divergence``.

llama.cpp's logger is never flushed, so its last lines are lost when the process ends first; the program
runs with a library that waits a moment at the end, and is asked again if that was not enough.

Base and file run with attention and KV cache in float32 and without repacking. The base's
log-probabilities are kept in 16 bits over the 16 nats below the most likely token; what that and the
kernels' rounding of activations leave of a file that is the base itself is the judge's noise floor.
"""

import json
import re
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.peers import peers
from coldpress import artifact, tools
from coldpress.errors import ToolError

THREADS = 1
EXACT = ("--no-repack", "-fa", "off", "-ctk", "f32", "-ctv", "f32", "-t", str(THREADS))
COMMAND = f"llama-perplexity --kl-divergence {' '.join(EXACT)} -c CONTEXT"
# As libllama.py: spinning at every barrier is ruinous as soon as another process wants the CPU.
QUIET = {"GOMP_SPINCOUNT": "1000"}
_LINGER = """
#include <unistd.h>
__attribute__((destructor)) static void linger(void) { usleep(300000); }
"""
_ATTEMPTS = 20
_NUMBER = r"\s*:\s+(-?[\d.]+(?:e-?\d+)?|-?nan|-?inf)"
_FIGURES = {
    "kl": r"Mean\s+KLD" + _NUMBER,
    "kl_stderr": r"Mean\s+KLD:\s+\S+\s+±\s+(\S+)",
    "kl_median": r"Median\s+KLD" + _NUMBER,
    "kl_p99": r"99\.0%\s+KLD" + _NUMBER,
    "perplexity": r"Mean PPL\(Q\)" + _NUMBER,
    "perplexity_ratio": r"Mean PPL\(Q\)/PPL\(base\)" + _NUMBER,
    "same_top1": r"Same top p" + _NUMBER,
}


@dataclass(frozen=True)
class Judged:
    """Over the scored tokens: KL from the base in nats, and the share with the same likeliest token."""

    kl: float
    kl_stderr: float
    kl_median: float
    kl_p99: float
    perplexity: float
    perplexity_ratio: float
    same_top1: float


def write_base(gguf: Path, text: Path, base: Path, context: int, chunks: int | None = None) -> None:
    """Keep the base model's log-probabilities over ``text`` in the file ``base``, unless it is there."""
    if base.is_file():
        return
    partial = base.with_name(base.name + ".partial")
    limit = () if chunks is None else ("--chunks", chunks)
    _run(gguf, "-f", text, "-c", context, "--kl-divergence-base", partial, *limit)
    partial.rename(base)


def judge(gguf: Path, base: Path, context: int) -> Judged:
    """Measure a file against a base; the result is kept beside the file, by both digests.

    Raises:
        ToolError: llama-perplexity fails, or never says all its figures.
    """
    kept = gguf.with_suffix(f".{base.stem}.json")
    # The base is large and written once: its size and time tell it from another.
    stamp = [artifact.sha256_file(gguf), base.stat().st_size, base.stat().st_mtime_ns]
    if kept.is_file() and (known := json.loads(kept.read_text()))["stamp"] == stamp:
        return Judged(**known["judged"])
    judged = _judge(gguf, base, context)
    kept.write_text(json.dumps({"stamp": stamp, "judged": asdict(judged)}) + "\n")
    return judged


def _judge(gguf: Path, base: Path, context: int) -> Judged:
    """Ask until all is said."""
    for _ in range(_ATTEMPTS):
        said = _run(gguf, "-c", context, "--kl-divergence-base", base, "--kl-divergence")
        if (judged := parse(said)) is not None:
            return judged
    raise ToolError(f"llama-perplexity gives no figures for {gguf}: {said[-500:]}")


def parse(said: str) -> Judged | None:
    """The figures in llama-perplexity's words; None if one is missing."""
    found = {name: re.search(pattern, said) for name, pattern in _FIGURES.items()}
    values = {name: float(match[1]) for name, match in found.items() if match}
    if len(values) < len(_FIGURES):
        return None
    return Judged(**{**values, "same_top1": values["same_top1"] / 100})


def _run(gguf: Path, *options: str | int | Path) -> str:
    argv = [str(peers() / "llama-perplexity"), "-m", str(gguf), *EXACT, *map(str, options)]
    with tempfile.TemporaryDirectory() as scratch:
        return tools.run(argv, timeout_s=3600, env={**QUIET, "LD_PRELOAD": _linger(Path(scratch))})


def _linger(folder: Path) -> str:
    """Compile the library that lets the log thread finish."""
    (folder / "linger.c").write_text(_LINGER)
    library = str(folder / "linger.so")
    tools.run(["cc", "-shared", "-fPIC", "-o", library, folder / "linger.c"], timeout_s=60)
    return library
