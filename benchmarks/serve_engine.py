"""Our engine beside ``llama-bench``: tokens read and tokens generated per second by one stream.

``python -m benchmarks.serve_engine GGUF`` runs ours once and prints its figures; ``compare`` takes turns with
``llama-bench``, each in a fresh process that does the work once without a clock and then takes the median of
five times.

Both read the same number of tokens and generate the same number after none. Ours goes through the engine as a
request does: it chooses each token and hands its text over, which ``llama-bench`` leaves out.
"""

import json
import queue
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import serve_models
from benchmarks.peers import BENCHMARKED, environment, peers
from coldpress.serve.engine import Engine
from coldpress.serve.generation import Delta, Done, Event
from coldpress.serve.load.place import locate
from coldpress.serve.options import EngineOptions
from coldpress.serve.sampling import GenerateOptions
from coldpress.serve.trace import Trace

PROMPT, ANSWER, THREADS, REPEATS = 512, 64, 2, 5
_CONTEXT = 1024
Figures = dict[str, float]


def compare(name: serve_models.Name, pairs: int) -> dict[str, Any]:
    """Runs of ours and of ``llama-bench`` in turns, without and with repacking, and their ratios.

    Without repacking is how we load: no second copy of the weights, no seconds for making it. Where the
    repacked kernels end in an illegal instruction their part says so.
    """
    gguf = serve_models.gguf(name)
    runs: dict[str, list[Any]] = {"ours": [], "no repack": [], "repack": []}
    for pair in range(pairs):
        runs["ours"].append(_ours(gguf))
        runs["no repack"].append(_llama_bench(gguf, repack=False))
        if not any("failed" in one for one in runs["repack"]):
            runs["repack"].append(_llama_bench(gguf, repack=True))
        shown = {key: taken[-1] for key, taken in runs.items()}
        print(f"pair {pair} {name}: {shown}", file=sys.stderr)
    peer = {key: taken for key, taken in runs.items() if key != "ours" and _ran(taken)}
    return {
        "runs": runs,
        "ratios": {
            figure: {key: _ratios(runs["ours"], taken, figure) for key, taken in peer.items()}
            for figure in ("prefill_tok_s", "decode_tok_s")
        },
    }


def headline(part: dict[str, Any], figure: str) -> float:
    """Ours over the better ``llama-bench``: the lower of the median ratios."""
    return float(min(each["median"] for each in part["ratios"][figure].values()))


def _ran(taken: list[Any]) -> bool:
    return all("failed" not in one for one in taken)


def _ratios(ours: list[Figures], theirs: list[Figures], figure: str) -> dict[str, Any]:
    each = [one[figure] / other[figure] for one, other in zip(ours, theirs, strict=True)]
    return {"median": median(each), "min": min(each), "max": max(each), "n": len(each)}


def _ours(gguf: Path) -> Figures:
    argv = [sys.executable, "-m", "benchmarks.serve_engine", str(gguf)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        raise SystemExit(f"our engine failed: {done.stderr[-500:]}")
    found: Figures = json.loads(done.stdout)
    return found


def _llama_bench(gguf: Path, *, repack: bool) -> dict[str, Any]:
    argv = [str(peers(BENCHMARKED) / "llama-bench"), "-m", str(gguf), "-t", str(THREADS)]
    argv += ["-p", str(PROMPT), "-n", str(ANSWER), "-r", str(REPEATS), "--repack", str(int(repack))]
    done = subprocess.run(
        [*argv, "-o", "json"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    if done.returncode:
        return {"failed": f"exit code {done.returncode}: {done.stderr[-300:]}"}
    tests = {(test["n_prompt"], test["n_gen"]): test for test in json.loads(done.stdout)}
    return {
        "prefill_tok_s": median(tests[PROMPT, 0]["samples_ts"]),
        "decode_tok_s": median(tests[0, ANSWER]["samples_ts"]),
    }


def _measure(gguf: Path) -> Figures:
    options = EngineOptions(context=_CONTEXT, parallel=1, threads=THREADS)
    engine = Engine(locate(gguf), options, Trace())
    engine.start()
    if not engine.wait(300):
        raise SystemExit(f"the engine does not start: {engine.failure}")
    try:
        biases = tuple((token, -100.0) for token in engine.model.end_tokens)

        def seconds(first: int, n_prompt: int, n_answer: int) -> float:
            # Begins with another token each time: nothing can be reused.
            prompt = [first + i % 1000 for i in range(n_prompt)]
            asked = GenerateOptions(max_tokens=n_answer, temperature=0, logit_bias=biases)
            return _seconds(engine, prompt, asked)

        def middle(n_prompt: int, n_answer: int) -> float:
            taken = [seconds(300 + turn, n_prompt, n_answer) for turn in range(REPEATS + 1)]
            return median(taken[1:])

        return {
            "prefill_tok_s": PROMPT / middle(PROMPT, 1),
            "decode_tok_s": ANSWER / middle(1, ANSWER),
        }
    finally:
        engine.close()


def _seconds(engine: Engine, prompt: list[int], options: GenerateOptions) -> float:
    """From handing a request over until its last event, which must be of its full length."""
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    began = time.perf_counter()
    engine.submit(prompt, options, events.put)
    while isinstance(event := events.get(), Delta):
        pass
    seconds = time.perf_counter() - began
    if not isinstance(event, Done) or event.completion_tokens != options.max_tokens:
        raise SystemExit(f"not an answer of {options.max_tokens} tokens: {event}")
    return seconds


if __name__ == "__main__":
    print(json.dumps(_measure(Path(sys.argv[1]))))
