"""What zeros save in a GGUF: nothing. ``reports/sparsity.json``, by ``python -m benchmarks.sparsity``.

Half of the demo model's weights in the blocks' matrices become zero, by magnitude, Wanda and SparseGPT, anywhere
or two in every four. Each is converted and quantized, and judged on held-out questions and text, beside the dense
model and beside fewer bits.
"""

import argparse
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import sparsity_kernels as kernels
from benchmarks.conditions import conditions
from benchmarks.prune_distill import Folder
from coldpress import demo
from coldpress.calibrate import statistics
from coldpress.convert import reference
from coldpress.gptq.stream import copy_beside
from coldpress.prune import checkpoint
from coldpress.quantize import QuantizeOptions
from coldpress.quantize.source import open_gguf

REPORT = Path(__file__).resolve().parents[1] / "reports/sparsity.json"
_TYPES = ("Q4_K", "Q2_K")
Kernel = Callable[[Any, Any, bool], Any]
KERNELS: dict[str, Kernel] = {
    "magnitude": lambda W, _H, pattern: kernels.magnitude(W, pattern),
    "Wanda": kernels.wanda,
    "SparseGPT": kernels.sparsegpt,
}


def sparse(at: Folder, name: str, kernel: Kernel, pattern: bool) -> Path:
    """The demo model with half of its blocks' weights zero, a Hugging Face folder."""
    out = at.folder / "sparse" / name
    if not out.is_dir():
        known = statistics.read(at.calibrated("base", demo.MODEL_DIR))
        model = reference.load_model(demo.MODEL_DIR).requires_grad_(False)
        for tensor in known.names:
            if tensor.startswith("blk."):
                weight = model.get_parameter(known.places(tensor)[0].parameter)
                H = torch.from_numpy(known.hessian(tensor)[0].copy())
                weight.copy_(kernel(weight, H, pattern))
        partial = out.with_suffix(".partial")
        checkpoint.save(model, demo.MODEL_DIR, partial)
        copy_beside(demo.MODEL_DIR, partial, leave=checkpoint.NOT_COPIED)
        partial.rename(out)
    return out


def row(at: Folder, name: str, gguf: Path) -> dict[str, Any]:
    """A file's bytes, as they are and deflated, and what it still knows."""
    file = gguf / "model.gguf"
    found = json.loads((at.judge(name, gguf) / "evaluation.json").read_text())
    return {
        "size_bytes": file.stat().st_size,
        "tensor_bytes": sum(int(each.n_bytes) for each in open_gguf(file).tensors),
        "deflated_bytes": len(zlib.compress(file.read_bytes(), 6)),
        "accuracy": found["questions"]["continuation"]["accuracy"],
        "kl_mean": found["kl"]["mean"] if found["kl"] else None,
    }


def main() -> None:
    """Make, judge, report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, default=Path("build/sparsity"))
    at = Folder(parser.parse_args().folder)
    (at.folder / "sparse").mkdir(parents=True, exist_ok=True)
    models = {"dense": demo.MODEL_DIR}
    for kind, kernel in KERNELS.items():
        for pattern in (False, True):
            name = f"{kind} {'2:4' if pattern else '50 %'}"
            models[name] = sparse(at, name.replace(" ", "-").replace("%", "pct"), kernel, pattern)
    rows = {}
    for name, model in models.items():
        tag = "base" if name == "dense" else model.name
        files = {"bf16": at.converted(tag, model)}
        files |= {
            each: at.rounded(tag, model, QuantizeOptions(type=each), each)
            for each in _TYPES[: 2 if name == "dense" else 1]
        }
        rows[name] = {
            each: row(at, "base" if (each, tag) == ("bf16", "base") else f"{tag}-{each}", path)
            for each, path in files.items()
        }
    dense = rows["dense"]["Q4_K"]
    sizes = {each["Q4_K"]["tensor_bytes"] for each in rows.values()}
    report = {
        **conditions("python -m benchmarks.sparsity"),
        "headline": {
            "bytes_saved_at_q4_k": max(sizes) - min(sizes),
            "sparsegpt_2_4_deflated_share": rows["SparseGPT 2:4"]["Q4_K"]["deflated_bytes"]
            / dense["deflated_bytes"],
        },
        "rows": rows,
    }
    REPORT.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(report["headline"], indent=1))


if __name__ == "__main__":
    main()
