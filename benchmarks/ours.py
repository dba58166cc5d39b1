"""Our own files for the benchmark: one per budget, all from one calibration."""

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.rivals import File
from benchmarks.subjects import Subject
from coldpress import artifact
from coldpress.calibrate import CalibrateOptions, calibrate
from coldpress.calibrate import plan as plan_calibrate
from coldpress.quantize import QuantizeOptions, budget, quantize
from coldpress.quantize import plan as plan_quantize

# Every token of the texts, as llama-imatrix takes it.
_MAX_TOKENS = 1 << 20


def budget_bytes(bf16: Path, bits_per_weight: float) -> int:
    """File bytes of a budget in bits per weight, as ``quantize --bpw`` counts them."""
    from gguf import GGUFReader

    return budget.file_bytes(bits_per_weight, GGUFReader(bf16), {})


def calibration(subject: Subject, folder: Path) -> Path:
    """The calibration on the text that llama-imatrix gets; what is there and current is reused."""
    out, options = folder / "calibration", CalibrateOptions(subject.context, _MAX_TOKENS)
    text, against = subject.calibration, (subject.heldout,)
    inputs, resolved = plan_calibrate(subject.model, out, options, text=text, against=against)
    if not artifact.is_current(out, "calibrate", inputs, resolved):
        calibrate(subject.model, out, options, text=text, against=against)
    return out


def files(subject: Subject, bf16: Path, folder: Path, budgets: Sequence[int]) -> dict[int, File]:
    """Bytes of a budget → our file of at most so many; what is there and current is reused."""
    known, made = calibration(subject, folder), {}
    for size in sorted(set(budgets)):
        out = folder / (f"{size}-healed" if subject.heal else f"{size}")
        options = QuantizeOptions(size=str(size), heal=subject.heal)
        model = subject.model
        inputs, resolved = plan_quantize(bf16, out, options, calibration=known, model=model)
        if not artifact.is_current(out, "quantize", inputs, resolved):
            print(f"  ours: {size} bytes", file=sys.stderr)
            quantize(bf16, out, options, calibration=known, model=model)
        made[size] = File("ours", f"{size} bytes", out / "model.gguf")
    return made
