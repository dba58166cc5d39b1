"""Fewer weights against fewer bits on the demo model: ``reports/prune_distill.json``.

``python -m benchmarks.prune_distill`` makes and judges, in one folder that a second call goes on from:

    recovery  a quarter of the blocks, and of their parts each where it costs least (``shapes``), taken out and
              taught back with many tokens
    bytes     at the bytes of 2.6 bits per weight of the original: rounded only, rounded and taught (both searched
              for), and a student of one type, rounded, and rounded and taught
    table     12.5 to 50 % of depth, of width, and of parts, before and after fewer tokens

Everything is judged on the GGUF: accuracy on the held-out questions and KL from the bf16 original on held-out
text, both of the same questions and tokens for all (paired).
"""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.conditions import conditions
from coldpress import artifact, demo
from coldpress.calibrate import CalibrateOptions, calibrate
from coldpress.convert import ConvertOptions, convert
from coldpress.demo.training_text import training_text
from coldpress.distill import DistillOptions, distill
from coldpress.evaluate import EvaluateOptions, evaluate
from coldpress.prune import PruneOptions, prune
from coldpress.quantize import QuantizeOptions, quantize
from coldpress.report.compare import side_by_side

REPORT = Path(__file__).resolve().parents[1] / "reports/prune_distill.json"
RATIOS = (0.125, 0.25, 0.375, 0.5)
WAYS = ("depth", "width", "shapes")
MULTIPLE = 128  # 12.5 and 37.5 % of 768 neurons are no multiple of 256
BPW, STUDENT_TYPE = 2.6, "IQ3_XXS"
MANY, FEW, TEACH, TEXT = "1M", "100k", "600k", "1.5M"
AGAINST = (demo.HELDOUT_TEXT,)
_JUDGE = EvaluateOptions(profile="fast", scoring=("continuation",))


class Folder:
    """What was made so far, by name; a finished artifact is taken as it is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seconds: dict[str, float] = {}
        self.path = folder / "seconds.json"
        if self.path.is_file():
            self.seconds = json.loads(self.path.read_text())

    def make(self, name: str, verb: Any, source: Any, options: Any, **given: Any) -> Path:
        """One artifact, with the seconds that it took."""
        out = self.folder / name
        if not (out / artifact.MANIFEST).is_file():
            began = time.perf_counter()
            verb(source, out, options, **given)
            self.seconds[name] = round(time.perf_counter() - began, 1)
            self.path.write_text(json.dumps(self.seconds, indent=1))
            print(f"{name}: {self.seconds[name]} s", flush=True)
        return out

    def judge(self, name: str, gguf: Path) -> Path:
        """An evaluation, against the base's."""
        base = None if name == "base" else self.judge("base", self.base())
        given = {"questions": demo.QUESTIONS_DIR, "text": demo.HELDOUT_TEXT, "base": base}
        return self.make(f"evaluate/{name}", evaluate, gguf, _JUDGE, **given)

    def base(self) -> Path:
        """The original as a GGUF."""
        return self.converted("base", demo.MODEL_DIR)

    def converted(self, name: str, model: Path) -> Path:
        """A model folder as a GGUF."""
        return self.make(f"gguf/{name}", convert, model, ConvertOptions(name=name))

    def calibrated(self, name: str, model: Path) -> Path:
        """A model's second moments."""
        given = {"text": demo.CALIBRATION_TEXT, "against": AGAINST}
        return self.make(f"calibration/{name}", calibrate, model, CalibrateOptions(), **given)

    def pruned(self, how: str, ratio: float) -> Path:
        """The demo model with a share taken out."""
        if how == "shapes":
            options = PruneOptions(ratio=ratio, heterogeneous=True, max_tokens=4096)
        else:
            options = PruneOptions(how=how, ratio=ratio, multiple=MULTIPLE)  # type: ignore[arg-type]
        given = {"text": demo.CALIBRATION_TEXT, "against": AGAINST}
        return self.make(f"pruned/{how}-{ratio}", prune, demo.MODEL_DIR, options, **given)

    def taught(self, how: str, ratio: float, tokens: str) -> Path:
        """That, taught by the original."""
        student = self.pruned(how, ratio)
        given = {"student": student, "text": training_text(), "against": AGAINST}
        options = DistillOptions(tokens=tokens, text_tokens=TEXT)
        return self.make(
            f"taught/{how}-{ratio}-{tokens}", distill, demo.MODEL_DIR, options, **given
        )

    def rounded(self, name: str, model: Path, options: QuantizeOptions, tag: str) -> Path:
        """A quantized file."""
        given: dict[str, Any] = {}
        if options.searches or options.rounding is not None:
            given = {"calibration": self.calibrated(name, model), "model": model}
        if options.teach is not None:
            given |= {"teacher": demo.MODEL_DIR, "text": training_text(), "against": AGAINST}
        return self.make(
            f"file/{name}-{tag}", quantize, self.converted(name, model), options, **given
        )


def recovery(at: Folder, how: str, ratio: float, tokens: str) -> dict[str, Any]:
    """Before and after teaching, bf16."""
    name = f"{how}-{ratio}"
    pruned, taught = at.pruned(how, ratio), at.taught(how, ratio, tokens)
    before = at.judge(name, at.converted(name, pruned))
    after = at.judge(f"{name}-{tokens}", at.converted(f"{name}-{tokens}", taught))
    base, (b, a) = _base(at), _rows(at, [before, after])
    lost = base["accuracy"] - b["accuracy"]
    record = json.loads((pruned / "prune.json").read_text())
    return {
        "how": how,
        "ratio": ratio,
        "what": record["what"],
        "parameters_before": record["parameters_before"],
        "parameters": record["parameters"],
        "tokens": tokens,
        "distill_s": at.seconds.get(f"taught/{name}-{tokens}"),
        "before": b,
        "after": a,
        "recovered": (a["accuracy"] - b["accuracy"]) / lost if lost > 0 else None,
    }


def at_equal_bytes(at: Folder) -> list[dict[str, Any]]:
    """Every way to fill the bytes of 2.6 bits per weight."""
    made = {"Q2_K plain": at.rounded("base", demo.MODEL_DIR, QuantizeOptions(type="Q2_K"), "q2")}
    first = at.rounded("base", demo.MODEL_DIR, QuantizeOptions(bpw=BPW), "searched")
    made["rounded"] = first
    options = QuantizeOptions(bpw=BPW, teach=TEACH)
    made["rounded, taught"] = at.rounded("base", demo.MODEL_DIR, options, "taught")
    # The largest type of which all of the student takes no more bytes.
    student, name = at.taught("shapes", 0.25, MANY), f"shapes-0.25-{MANY}"
    for tag, teach in (("rounded", None), ("rounded, taught", TEACH)):
        options = QuantizeOptions(type=STUDENT_TYPE, rounding="compensated", teach=teach)
        made[f"shapes −25 %, {STUDENT_TYPE} {tag}"] = at.rounded(name, student, options, tag[-6:])
    largest = (first / "model.gguf").stat().st_size
    for path in list(made.values())[1:]:
        if (path / "model.gguf").stat().st_size > largest:
            raise SystemExit(f"{path} is larger than {largest} bytes")
    judged = [at.judge(f"{path.name}-file", path) for path in made.values()]
    rows = _rows(at, judged)
    return [{"way": way, **row} for way, row in zip(made, rows, strict=True)]


def _base(at: Folder) -> dict[str, Any]:
    return _rows(at, [])[0]


def _rows(at: Folder, evaluations: list[Path]) -> list[dict[str, Any]]:
    """Rows of evaluations beside the base, in their order; of none, the base's own."""
    compared = side_by_side([at.judge("base", at.base()), *evaluations])
    rows = dict(zip(compared.folders, compared.rows, strict=True))
    keep = ("size_bytes", "bits_per_weight", "accuracy", "accuracy_stderr", "delta", "delta_low")
    keep += ("delta_high", "lost", "gained", "kl_mean", "same_top1")
    wanted = evaluations or [at.judge("base", at.base())]
    return [{key: asdict(rows[path])[key] for key in keep} for path in wanted]


def main() -> None:
    """Make, judge, report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, default=Path("build/prune_distill"))
    at = Folder(parser.parse_args().folder)
    report: dict[str, Any] = conditions("python -m benchmarks.prune_distill")
    report |= {"headline": {}, "base": _base(at)}
    large = {how: recovery(at, how, 0.25, MANY) for how in ("depth", "shapes")}
    report["recovery"] = large
    report["headline"] = {
        f"recovered_after_25pct_{how}": each["recovered"] for how, each in large.items()
    }
    _write(report, at)
    files = at_equal_bytes(at)
    kl = {each["way"]: each["kl_mean"] for each in files}
    ours = [each for each in files if each["way"] != "Q2_K plain"]
    report["equal_bytes"] = files
    report["headline"] |= {
        "qad_kl_ratio_at_2_6_bpw": kl["rounded, taught"] / kl["Q2_K plain"],
        "qad_kl_ratio_to_searched_at_2_6_bpw": kl["rounded, taught"] / kl["rounded"],
        "best_at_2_6_bpw": min(ours, key=lambda each: float(each["kl_mean"]))["way"],
    }
    _write(report, at)
    report["table"] = []
    for how in WAYS:
        for ratio in RATIOS:
            report["table"].append(recovery(at, how, ratio, FEW))
            _write(report, at)


def _write(report: dict[str, Any], at: Folder) -> None:
    whole = {**report, "seconds": at.seconds}
    REPORT.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(report["headline"], indent=1, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
