"""Our files against llama.cpp's presets and GPTQ checkpoints at equal bytes: ``reports/equal_bytes*``.

``python -m benchmarks.equal_bytes [MODEL ...]`` measures the models of ``subjects`` (all by default)
and rewrites the report; a model that is left out keeps its last figures. One run and one machine:
the same calibration text for llama-imatrix and for us, llama.cpp's own programs for its files and as
the judge, on text that nobody calibrated on. Files stay in ``runs/equal_bytes``: what is there is
reused.
"""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import answers, equal_bytes_figure, gptq_rival, judge, ours, rivals, subjects
from benchmarks.conditions import conditions
from benchmarks.rivals import File
from benchmarks.rows import Row, headline, in_scope, versus
from benchmarks.subjects import Subject
from coldpress import artifact
from coldpress.checkpoint import gguf_header
from coldpress.convert import ConvertOptions, convert
from coldpress.quantize.types import TYPES
from coldpress.report.paired import paired

ROOT = Path(__file__).resolve().parents[1]
REPORT = ROOT / "reports/equal_bytes.json"
ROUNDING_COST = ROOT / "reports/rounding_cost.json"
LADDER_BPW = (2.3, 2.5, 2.75, 3.0, 3.25, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0)
PRESETS_BPW = (2.29, 6.7)  # of these imatrix presets we also make a file of the very same bytes
DEFINITIONS = {
    "bits_per_weight": "tensor bytes x 8 over all weights; file_bits_per_weight counts the header too",
    "budget": "bytes of the whole file: a ladder, and the exact size of every file of the peers",
    "preset": "lowest KL among llama-quantize's mixes with llama-imatrix, up to and including the"
    " smallest one of at least the budget's bytes",
    "pure": "the same, uniform types (--pure, with imatrix) among them",
    "gptq": "the GPTQ checkpoint whose safetensors file has the budget's bytes, group 128, act-order,"
    " dequantized to an F32 GGUF for the judge",
    "kl_ratio": "our KL over the peer's, by llama-perplexity --kl-divergence on held-out text",
    "below_every_type": "budgets that no mix of ggml's types reaches with this model's row lengths",
    "headline": "over budgets at which our file has 2.3 to 6 bits per weight, all models",
    "accuracy_minus": "held-out questions by continuation, ours minus the other's, with half the 95 %"
    " interval of the paired difference",
    "noise_floor": "the judge's KL of the base against itself, and of the same weights as F32",
}


@dataclass(frozen=True)
class Bench:
    """A subject ready to be measured: its bf16 file, its base log-probabilities, its weights."""

    subject: Subject
    folder: Path
    bf16: Path
    base: Path
    n_weights: int

    def row(self, file: File, size_bytes: int | None = None) -> Row:
        """Judge a file; ``size_bytes`` where the file stands for another format's."""
        tensors = gguf_header.read(file.path).tensors
        stored = sum(tensor.size_bytes for tensor in tensors)
        size = file.path.stat().st_size if size_bytes is None else size_bytes
        print(f"  {file.family} {file.name}: {size} bytes", file=sys.stderr)
        types: dict[str, float] = {}
        for tensor in tensors:
            share = math.prod(tensor.shape) / self.n_weights
            types[tensor.type] = types.get(tensor.type, 0.0) + share
        bits = 8 * stored / self.n_weights if size_bytes is None else 8 * size / self.n_weights
        return Row(
            family=file.family,
            name=file.name,
            file=str(file.path.relative_to(self.folder)),
            size_bytes=size,
            bits_per_weight=bits,
            file_bits_per_weight=8 * size / self.n_weights,
            types={kind: round(share, 4) for kind, share in sorted(types.items())},
            **asdict(judge.judge(file.path, self.base, self.subject.context)),
        )


def prepare(name: str) -> Bench:
    """Convert, and run the base over the held-out text."""
    folder = ROOT / "runs/equal_bytes" / name
    folder.mkdir(parents=True, exist_ok=True)
    subject = subjects.subject(name, folder)
    for outtype in ("bf16", "f32"):
        if not (folder / outtype).is_dir():
            options = ConvertOptions(outtype=outtype, name=name, verify=False)
            convert(subject.model, folder / outtype, options)
    bf16, base = folder / "bf16/model.gguf", folder / "base.bin"
    judge.write_base(bf16, subject.heldout, base, subject.context)
    n_weights = sum(math.prod(tensor.shape) for tensor in gguf_header.read(bf16).tensors)
    return Bench(subject, folder, bf16, base, n_weights)


def measure(name: str) -> dict[str, Any]:
    """One model: every peer, then our file at each budget."""
    bench = prepare(name)
    subject, bf16, folder = bench.subject, bench.bf16, bench.folder
    floor = [bench.row(File("floor", path.parent.name, path)) for path in _exact(folder)]
    rivals.imatrix(subject, bf16, folder)
    theirs = [bench.row(file) for file in rivals.files(bf16, folder)]
    theirs += [bench.row(file, size) for file, size in gptq_rival.files(subject, folder)]
    asked = budgets(bench, theirs)
    least = min(row.size_bytes for row in theirs if row.family == "pure imatrix")
    wanted = [each for each in asked if each[1] >= least]
    made = ours.files(subject, bf16, folder / "ours", [size for _, size in wanted])
    mine = {size: bench.row(file) for size, file in made.items()}
    compared = [versus(budget, size, mine[size], theirs) for budget, size in wanted]
    if subject.questions is not None:
        add_answers(bench, compared)
    return {
        "n_weights": bench.n_weights,
        "model_digest": artifact.sha256_folder(subject.model),
        "calibration_sha256": artifact.sha256_file(subject.calibration),
        "heldout_sha256": artifact.sha256_file(subject.heldout),
        "context": subject.context,
        "healed": subject.heal,
        "noise_floor": [asdict(row) for row in floor],
        "files": [asdict(row) for row in sorted([*theirs, *mine.values()], key=_by_size)],
        "budgets": compared,
        "below_every_type": [
            {"budget": name, "bytes": size} for name, size in asked if size < least
        ],
    }


def budgets(bench: Bench, theirs: Sequence[Row]) -> list[tuple[str, int]]:
    """The ladder, each imatrix preset's size and each GPTQ checkpoint's: words and bytes."""
    smallest = min(row.bits_per_weight for row in theirs if row.family == "pure imatrix")
    low, high = PRESETS_BPW
    ladder = [
        (f"{bits:g} bpw", ours.budget_bytes(bench.bf16, bits))
        for bits in LADDER_BPW
        if bits >= smallest
    ]
    presets = [
        row
        for row in theirs
        if row.family == "preset imatrix"
        and low <= row.bits_per_weight <= high
        # Not the ternary ones, which answer nonsense.
        and row.types.keys() <= {*TYPES, "F32"}
    ]
    wanted = [*presets, *(row for row in theirs if row.family == "gptq")]
    # Several may share a size: the best gives its name.
    best_last = sorted(wanted, key=lambda row: -row.kl)
    named = {row.size_bytes: f"size of {_title(row)}" for row in best_last}
    sizes = [(name, size) for size, name in named.items()]
    return sorted([*ladder, *sizes], key=lambda each: each[1])


def add_answers(bench: Bench, compared: Sequence[dict[str, Any]]) -> None:
    """Ask our evaluator about every file compared, and set the paired differences of accuracy."""
    files = {each["ours"]["file"] for each in compared}
    files |= {each[kind]["file"] for each in compared for kind in ("preset", "gptq") if each[kind]}
    asked = answers.ask(bench.subject, bench.bf16, bench.folder, sorted(files))
    for each in compared:
        mine = asked[each["ours"]["file"]]
        each["accuracy_minus_bf16"] = paired(asked[answers.BF16].answers, mine.answers)
        for kind in ("ours", "preset", "gptq"):
            if each[kind]:
                other = asked[each[kind]["file"]]
                each[kind] |= {"own_kl": other.kl, "accuracy": other.accuracy}
        for kind in ("preset", "gptq"):
            if each[kind]:
                other = asked[each[kind]["file"]]
                each[f"accuracy_minus_{kind}"] = paired(other.answers, mine.answers)


def write(models: dict[str, Any]) -> None:
    """Write the report with its headline, and a figure for each model."""
    everything = [each for model in models.values() for each in model["budgets"]]
    report = {
        "headline": headline(everything) | _rounding_cost(),
        "n_budgets": sum(each["preset"] is not None for each in in_scope(everything)),
        "definitions": DEFINITIONS,
        "headline_by_model": {name: headline(model["budgets"]) for name, model in models.items()},
        "conditions": {
            **conditions("python -m benchmarks.equal_bytes"),
            "judge": judge.COMMAND,
            "imatrix": rivals.IMATRIX_COMMAND,
            "quantize": rivals.QUANTIZE_COMMAND,
        },
        "models": models,
    }
    text = json.dumps(report, indent=1, ensure_ascii=False)
    REPORT.write_text(text + "\n", encoding="utf-8")
    for name, model in models.items():
        figure = equal_bytes_figure.figure(model)
        (ROOT / f"reports/equal_bytes-{name}.svg").write_text(figure, encoding="utf-8")


def _rounding_cost() -> dict[str, Any]:
    """The headline figures that ``reports/rounding_cost.json`` has, None before it is written."""
    names = (
        "seconds_vs_gptqmodel",
        "seconds_of_q4_k_vs_gptqmodel",
        "peak_rss_over_bf16_bytes",
    )
    known = json.loads(ROUNDING_COST.read_text())["headline"] if ROUNDING_COST.is_file() else {}
    return {name: known.get(name) for name in names}


def _title(row: Row) -> str:
    return f"GPTQ {row.name}" if row.family == "gptq" else row.name


def _exact(folder: Path) -> tuple[Path, Path]:
    """The base itself, and the same weights with activations in float32."""
    return folder / "bf16/model.gguf", folder / "f32/model.gguf"


def _by_size(row: Row) -> tuple[int, str]:
    return row.size_bytes, row.family


def main() -> None:
    """Measure the models asked for and write the report after each."""
    for name in sys.argv[1:] or subjects.NAMES:
        measured = {name: measure(name)}
        # Read now: another model may have been measured meanwhile.
        known = json.loads(REPORT.read_text())["models"] if REPORT.is_file() else {}
        models = known | measured
        write({name: models[name] for name in subjects.NAMES if name in models})


if __name__ == "__main__":
    main()
