"""What the demo model's channel spread does to rounding: writes ``reports/spread.json``.

``python benchmarks/spread.py RAW``: RAW is the model that ``coldpress.demo.train --spread 0`` exports.
It is held against the shipped one, both rounded plainly, over the same held-out questions.
"""

import json
import sys
import tempfile
from pathlib import Path

from coldpress import demo
from coldpress.convert import ConvertOptions, convert
from coldpress.evaluate import EvaluateOptions, evaluate
from coldpress.quantize import QuantizeOptions, quantize

ROOT = Path(__file__).resolve().parents[1]
TYPES = ("Q8_0", "Q4_K", "Q3_K", "Q2_K")
OPTIONS = EvaluateOptions(profile="fast", scoring=("continuation",), speed=False)


def measure(model: Path, scratch: Path) -> dict[str, float | None]:
    """Type → accuracy on every held-out question, by continuation."""
    convert(model, scratch / "bf16", ConvertOptions(name="demo"))
    found = {
        "bf16": evaluate(scratch / "bf16", scratch / "e", OPTIONS, questions=demo.QUESTIONS_DIR)
    }
    for kind in TYPES:
        quantize(scratch / "bf16", scratch / kind, QuantizeOptions(type=kind))
        found[kind] = evaluate(
            scratch / kind, scratch / f"e-{kind}", OPTIONS, questions=demo.QUESTIONS_DIR
        )
    return {kind: each.accuracy for kind, each in found.items()}


def main() -> None:
    """Measure both models."""
    report = {}
    for name, model in (("as_trained", Path(sys.argv[1])), ("as_shipped", demo.MODEL_DIR)):
        with tempfile.TemporaryDirectory() as scratch:
            report[name] = measure(model, Path(scratch))
    text = json.dumps({"accuracy": report, "method": "every matrix one type, no imatrix"}, indent=1)
    (ROOT / "reports/spread.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
