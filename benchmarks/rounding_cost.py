"""What calibrating and rounding cost beside gptqmodel's GPTQ: ``reports/rounding_cost.json``.

``python -m benchmarks.rounding_cost`` makes a random model with Llama-3.2-1B's layers, and has both quantize the
same layers to 4 bits on the same sequences and two threads, one after the other, several times. Peak memory is
of a process that does all of our work; as blocks are streamed it hardly grows with their number, and is
compared with the bf16 bytes of the whole model, embeddings included.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import gptqmodel_peer as peer
from coldpress.evaluate.describe import cpu_model

REPORT = Path(__file__).resolve().parents[1] / "reports/rounding_cost.json"
# 1,235,814,400 weights of Llama-3.2-1B, two bytes each.
LLAMA_3_2_1B_BF16_BYTES = 2_471_628_800


def ours(model: Path, scratch: Path, sequences: int, context: int) -> dict[str, Any]:
    """Calibrate, and round every layer's matrices to Q4_K: seconds, and this process's peak memory."""
    from coldpress import demo
    from coldpress.calibrate import CalibrateOptions, calibrate
    from coldpress.convert import ConvertOptions, convert
    from coldpress.quantize import QuantizeOptions, quantize

    convert(model, scratch / "gguf", ConvertOptions(verify=False))
    began, worked = time.perf_counter(), time.process_time()
    options = CalibrateOptions(context=context, max_tokens=sequences * context)
    calibrate(model, scratch / "calibration", options, text=demo.CALIBRATION_TEXT)
    calibrated = time.perf_counter()
    options_ = QuantizeOptions(type="Q4_K", rounding="compensated")
    quantize(scratch / "gguf", scratch / "q4", options_, calibration=scratch / "calibration")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "seconds": time.perf_counter() - began,
        "calibrate_seconds": calibrated - began,
        "cpu_seconds": time.process_time() - worked,
        "peak_rss_bytes": peak,
    }


def _ours_apart(model: Path, sequences: int, context: int, threads: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        argv = [sys.executable, "-m", "benchmarks.rounding_cost", "--inside", str(model), scratch]
        done = subprocess.run(
            [*argv, "--sequences", str(sequences), "--context", str(context)],
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        sys.exit(f"our side failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both sides, in turns."""
    pairs = []
    for turn in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as scratch:
            model = Path(scratch) / "model"
            peer.make(model, arguments.layers)
            ours_ = _ours_apart(model, arguments.sequences, arguments.context, arguments.threads)
        theirs = peer.measure(arguments)
        print(f"turn {turn}: ours {ours_}, gptqmodel {theirs}", file=sys.stderr)
        pairs.append({"ours": ours_, "gptqmodel": theirs})
    weights = pairs[0]["gptqmodel"]["weights"]
    ratio = median(pair["ours"]["seconds"] / pair["gptqmodel"]["seconds"] for pair in pairs)
    peak = max(pair["ours"]["peak_rss_bytes"] for pair in pairs)
    return {
        "headline": {
            "seconds_vs_gptqmodel": ratio,
            "peak_rss_over_bf16_bytes": peak / LLAMA_3_2_1B_BF16_BYTES,
        },
        "seconds_per_million_weights": {
            side: median(pair[side]["seconds"] for pair in pairs) / (weights / 1e6)
            for side in ("ours", "gptqmodel")
        },
        "conditions": {
            "cpu": cpu_model(),
            "command": "python -m benchmarks.rounding_cost",
            **{key: value for key, value in vars(arguments).items() if isinstance(value, int)},
        },
        "pairs": pairs,
    }


def main() -> None:
    """Measure and write the report; ``--inside`` is how it starts our side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inside", nargs=2, metavar=("MODEL", "SCRATCH"))
    parser.add_argument("--python", default=str(peer.interpreter()))
    defaults = {"layers": 2, "sequences": 16, "context": 512, "bits": 4, "group_size": 128}
    for name, value in {**defaults, "threads": 2, "repeats": 3}.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    arguments = parser.parse_args()
    if arguments.inside:
        model, scratch = map(Path, arguments.inside)
        print(json.dumps(ours(model, scratch, arguments.sequences, arguments.context)))
        return
    REPORT.write_text(json.dumps(measure(arguments), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
