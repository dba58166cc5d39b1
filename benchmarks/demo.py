"""Run the demo as a newcomer would and write ``reports/demo.json``.

``make demo`` is run twice, the first time with nothing to reuse but the installation. The cold start is asked
for several times: it is noisier than the rest.
"""

import datetime
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from coldpress import artifact, demo, libllama
from coldpress.evaluate import result
from coldpress.report import rows
from coldpress.serve import ask

ROOT = Path(__file__).resolve().parents[1]
RUN = Path("runs/demo")
COLD_STARTS = 7


def main() -> None:
    """Measure everything and write the report."""
    os.chdir(ROOT)
    shutil.rmtree(RUN, ignore_errors=True)
    first, second = _command("demo"), _command("demo")
    evaluations = sorted(path.parent for path in (RUN / "evaluate").glob("*/manifest.json"))
    table = [asdict(row) for row in rows(evaluations)]
    cold = _cold_starts()
    image = next(f for f in artifact.read(RUN / "package/lambda").files if f.name == "image.tar")
    report = {
        "headline": {
            "bf16_accuracy": _accuracy(table, "bf16"),
            "q4_accuracy": _accuracy(table, "Q4_K"),
            "q2_accuracy": _accuracy(table, "Q2_K"),
            "pipeline_s": round(first["seconds"], 1),
            "image_bytes": image.size_bytes,
            "cold_start_to_first_token_s": statistics.median(cold),
        },
        "definitions": {
            "q4_accuracy": "every matrix Q4_K, no imatrix; share of held-out questions, continuation",
            "q2_accuracy": "every matrix Q2_K, no imatrix",
            "pipeline_s": "wall seconds of `make demo` after set-up, base layer cached",
            "image_bytes": "the Lambda image's OCI archive",
            "cold_start_to_first_token_s": "median, fresh runtime process, file in the page cache",
        },
        "second_run_s": round(second["seconds"], 1),
        "cold_starts_s": sorted(cold),
        "rows": table,
        "conditions": _conditions(evaluations),
        "transcript": [{"command": "make demo", "output": first["output"]}],
    }
    for figure in ("accuracy", "kl"):
        shutil.copyfile(RUN / f"report/{figure}.svg", f"reports/demo-{figure}.svg")
    text = json.dumps(report, indent=1, ensure_ascii=False)
    (ROOT / "reports/demo.json").write_text(text + "\n", encoding="utf-8")


def _command(target: str) -> dict[str, Any]:
    """Run a make target; its words, as a terminal would show them, and its wall time."""
    print(f"make {target} ...", file=sys.stderr)
    began = time.perf_counter()
    done = subprocess.run(
        ["make", "--silent", target],  # make is what users type
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"make {target} failed:\n{done.stdout[-3000:]}")
    return {"seconds": time.perf_counter() - began, "output": done.stdout}


def _cold_starts() -> list[float]:
    with tempfile.TemporaryDirectory() as scratch:
        return [
            ask.ask(
                RUN / "checkpoint",
                Path(scratch) / str(i),
                ask.AskOptions(prompt="What is the capital of France?"),
            ).cold_start_to_first_token_s
            for i in range(COLD_STARTS)
        ]


def _accuracy(table: list[dict[str, Any]], name: str) -> float:
    return float(next(row["accuracy"] for row in table if row["name"] == name))


def _conditions(evaluations: list[Path]) -> dict[str, Any]:
    base = next(each for each in map(result.read, evaluations) if each.method == "base")
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=True,
    )
    return {
        **asdict(base.conditions),
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "commit": commit.stdout.strip(),
        "profile": base.profile,
        "n_params": base.n_params,
        "n_questions": base.questions["continuation"].n,
        "letter_accuracy_bf16": base.questions["letter"].accuracy,
        "model_digest": artifact.sha256_folder(demo.MODEL_DIR),
        "runtime": libllama.version(),
    }


if __name__ == "__main__":
    main()
