"""What each step of quantizing gains at the same bytes: ``reports/ablation.json``.

``python -m benchmarks.ablation`` writes the demo model with every matrix in one type, adding a step at a time;
then files of those very bytes with searched types, and healed ones. All are judged by llama-perplexity on
text that nobody calibrated on. ``python -m benchmarks.equal_bytes demo`` has run before: its bank is used.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from benchmarks import equal_bytes, judge, ours
from benchmarks.conditions import conditions
from benchmarks.equal_bytes import Bench
from coldpress.calibrate import statistics
from coldpress.quantize import QuantizeOptions, importance, quantize
from coldpress.quantize.encode import Bytes, encode_tensor
from coldpress.quantize.layout import uniform
from coldpress.quantize.rounding import Factor, factor, scalar
from coldpress.quantize.rounding.compensate import Refine, feed_back, settle
from coldpress.quantize.rounding.grids import GRIDS
from coldpress.quantize.source import Floats, open_gguf, rows
from coldpress.quantize.types import TYPES, GgmlType
from coldpress.quantize.write import write

ROOT = Path(__file__).resolve().parents[1]
REPORT = ROOT / "reports/ablation.json"
KINDS = ("Q2_K", "Q4_K")
HEALED = ("Q2_K",)  # Minutes each.
Round = Callable[[Floats, GgmlType, Factor], Bytes]


def kept(kind: GgmlType) -> Refine:
    """Only block feedback: ggml's own bytes for what is left to store."""

    def refine(W: Tensor, blocks: Tensor, U: Tensor, *, again: bool) -> tuple[Tensor, Tensor]:
        decoded = gguf.quants.dequantize(blocks.numpy(), gguf.GGMLQuantizationType(kind.ggml_id))
        return blocks, torch.from_numpy(decoded)

    return refine


def stepwise(kind: GgmlType, refits: int, *, descends: bool) -> Refine:
    """Inner feedback on ggml's scales, then refits of the scales, then descent on the codes."""
    grid = GRIDS[kind.name]

    def refine(W: Tensor, blocks: Tensor, U: Tensor, *, again: bool) -> tuple[Tensor, Tensor]:
        if descends:
            return scalar.refine(W, blocks, U, kind.name, walks=not again)
        task = scalar.Task.of(W, U, grid)
        best = state = task.given(grid.unpack(blocks))
        for turn in range(1 + refits):
            state = task.walked(task.refitted(state) if turn else state)
            best = best.better(state)
        return task.stored(best)

    return refine


STEPS: dict[str, tuple[Callable[[GgmlType], Refine], bool]] = {
    "+ block feedback": (kept, False),
    "+ inner feedback": (lambda kind: stepwise(kind, 0, descends=False), False),
    "+ refit of scales": (lambda kind: stepwise(kind, 1, descends=False), False),
    "+ descent on codes": (lambda kind: stepwise(kind, 1, descends=True), False),
    "+ second pass over blocks": (lambda kind: stepwise(kind, 1, descends=True), True),
}


def steps(bench: Bench, kind: GgmlType, calibration: Path) -> list[dict[str, Any]]:
    """One type's files, a step more each."""
    reader = open_gguf(bench.bf16)
    known, weights = statistics.read(calibration), importance.read(calibration, reader)
    types = uniform(reader, kind)
    folder = bench.folder / "ablation"
    folder.mkdir(exist_ok=True)

    def plain(tensor: Any, wanted: GgmlType) -> Bytes:
        return encode_tensor(tensor, wanted, None)

    def by_imatrix(tensor: Any, wanted: GgmlType) -> Bytes:
        return encode_tensor(tensor, wanted, weights.importance(tensor.name))

    def fed_back(refiner: Callable[[GgmlType], Refine], twice: bool) -> Callable[..., Bytes]:
        def encoded(tensor: Any, wanted: GgmlType) -> Bytes:
            W = torch.from_numpy(np.array(rows(tensor, 0, int(tensor.shape[1])), np.float32))
            its = factor(torch.from_numpy(known.hessian(tensor.name)[0]))
            refine = refiner(wanted)
            raw, E = feed_back(W, wanted, its, refine)
            done = settle(W, raw, E, wanted, its, refine) if twice else raw.view(len(W), -1)
            return done.numpy()

        return encoded

    ways = {"plain": plain, "imatrix": by_imatrix}
    ways |= {step: fed_back(*how) for step, how in STEPS.items()}
    found = []
    for step, way in ways.items():
        path = folder / f"{kind.name}-{len(found)}.gguf"
        write(reader, types, {}, path, way)
        found.append(_row(bench, step, path))
    return found


def searched(bench: Bench, size: int, calibration: Path, *, heals: bool) -> list[dict[str, Any]]:
    """The same bytes with searched types, and those healed."""
    found, model = [], bench.subject.model
    folder = bench.folder / "ours"
    ways = {"+ allocation": (f"{size}", QuantizeOptions(size=str(size)))}
    if heals:
        ways["+ heal"] = (f"{size}-healed", QuantizeOptions(size=str(size), heal=True))
    for step, (name, options) in ways.items():
        out = folder / name
        if not (out / "model.gguf").is_file():
            quantize(bench.bf16, out, options, calibration=calibration, model=model)
        found.append(_row(bench, step, out / "model.gguf"))
    return found


def _row(bench: Bench, step: str, path: Path) -> dict[str, Any]:
    judged = asdict(judge.judge(path, bench.base, bench.subject.context))
    print(f"  {path.stem} {step}: KL {judged['kl']:.4f}", file=sys.stderr)
    return {"step": step, "size_bytes": path.stat().st_size, **judged}


def main() -> None:
    """Measure and write the report."""
    bench = equal_bytes.prepare("demo")
    calibration = ours.calibration(bench.subject, bench.folder / "ours")
    types = {}
    for name in KINDS:
        kind = TYPES[name]
        found = steps(bench, kind, calibration)
        found += searched(bench, found[1]["size_bytes"], calibration, heals=name in HEALED)
        types[name] = found
    report = {
        "conditions": {**conditions("python -m benchmarks.ablation"), "judge": judge.COMMAND},
        "types": types,
    }
    REPORT.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
