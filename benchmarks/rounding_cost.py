"""What calibrating and rounding cost beside gptqmodel's GPTQ: ``reports/rounding_cost.json``.

``python -m benchmarks.rounding_cost`` makes a random model with Llama-3.2-1B's layers, and has both quantize the
same layers to 4 bits on the same sequences and two threads, one after the other, several times. We write the
same thing, a GPTQ checkpoint, and then Q4_K with everything that rounding has. Peak memory is of a process that
does all of our work; as blocks are streamed it hardly grows with their number, and is compared with the bf16
bytes of the whole model, embeddings included.
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


FORMS = ("gptq", "gguf")


def ours(model: Path, scratch: Path, form: str, sequences: int, context: int) -> dict[str, Any]:
    """Calibrate, and round every layer to 4 bits: seconds, and this process's peak memory."""
    from coldpress import demo
    from coldpress.calibrate import CalibrateOptions, calibrate
    from coldpress.convert import ConvertOptions, convert
    from coldpress.gptq import GptqOptions, checkpoint
    from coldpress.quantize import QuantizeOptions, quantize

    if form == "gguf":
        convert(model, scratch / "gguf", ConvertOptions(verify=False))
    began, worked = time.perf_counter(), time.process_time()
    options = CalibrateOptions(context=context, max_tokens=sequences * context)
    known = scratch / "calibration"
    calibrate(model, known, options, text=demo.CALIBRATION_TEXT)
    calibrated = time.perf_counter()
    if form == "gguf":
        kind = QuantizeOptions(type="Q4_K", rounding="compensated")
        quantize(scratch / "gguf", scratch / "q4", kind, calibration=known)
    else:
        checkpoint(model, scratch / "gptq", GptqOptions(bits=4), calibration=known)
    return {
        "seconds": time.perf_counter() - began,
        "calibrate_seconds": calibrated - began,
        "cpu_seconds": time.process_time() - worked,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _ours_apart(model: Path, form: str, arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        argv = [
            sys.executable,
            "-m",
            "benchmarks.rounding_cost",
            "--inside",
            str(model),
            scratch,
            form,
        ]
        counts = ["--sequences", str(arguments.sequences), "--context", str(arguments.context)]
        done = subprocess.run(
            [*argv, *counts],
            env={**os.environ, "OMP_NUM_THREADS": str(arguments.threads)},
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
            made = {form: _ours_apart(model, form, arguments) for form in FORMS}
        made["gptqmodel"] = peer.measure(arguments)
        print(f"turn {turn}: {made}", file=sys.stderr)
        pairs.append(made)
    weights = pairs[0]["gptqmodel"]["weights"]
    ratios = {
        form: median(pair[form]["seconds"] / pair["gptqmodel"]["seconds"] for pair in pairs)
        for form in FORMS
    }
    peak = max(pair[form]["peak_rss_bytes"] for pair in pairs for form in FORMS)
    return {
        "headline": {
            "seconds_vs_gptqmodel": ratios["gptq"],
            "seconds_of_q4_k_vs_gptqmodel": ratios["gguf"],
            "peak_rss_over_bf16_bytes": peak / LLAMA_3_2_1B_BF16_BYTES,
        },
        "seconds_per_million_weights": {
            side: median(pair[side]["seconds"] for pair in pairs) / (weights / 1e6)
            for side in (*FORMS, "gptqmodel")
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
    parser.add_argument("--inside", nargs=3, metavar=("MODEL", "SCRATCH", "FORM"))
    parser.add_argument("--python", default=str(peer.interpreter()))
    defaults = {"layers": 1, "sequences": 16, "context": 512, "bits": 4, "group_size": 128}
    for name, value in {**defaults, "threads": 2, "repeats": 3}.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    arguments = parser.parse_args()
    if arguments.inside:
        model, scratch, form = arguments.inside
        counts = arguments.sequences, arguments.context
        print(json.dumps(ours(Path(model), Path(scratch), form, *counts)))
        return
    REPORT.write_text(json.dumps(measure(arguments), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
