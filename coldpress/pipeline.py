"""A recipe's stages in order: what is done is reused, what was interrupted goes on.

Each stage is an artifact folder under ``out``; a stage is skipped when the folder holds the result of
exactly the same work (see ``artifact.run_id``).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from coldpress import artifact, demo
from coldpress.errors import ToolError
from coldpress.progress import note
from coldpress.recipe import Recipe, Student, Variants


@dataclass(frozen=True)
class Ran:
    """What a run made: folders of the finished artifacts, and what could not be made here."""

    out: Path
    evaluations: tuple[Path, ...]
    report: Path
    checkpoint: Path
    packages: tuple[Path, ...]
    skipped: tuple[str, ...]
    answer: Path | None
    seconds: float


def run(recipe: Recipe, root: Path, out: Path) -> Ran:
    """Do everything a recipe asks for.

    Args:
        root: the folder that the recipe's relative paths start from.
        out: where the artifacts go, one folder per stage and variant.
    """
    from coldpress import checkpoint, report

    began = time.perf_counter()
    made = Making(recipe, root, out)
    made.files("", made.model, out, recipe.quantize)
    for name, student in recipe.students.items():
        folder = out / "students" / name
        made.files(name, made.student(student, folder), folder, student.quantize)
    evaluations = made.evaluate()
    _step("report", report, "report", evaluations, out / "report", recipe.report)
    shipped = out / "checkpoint"
    source = made.variants[recipe.ship]
    _step("checkpoint", checkpoint, "checkpoint", source, shipped, recipe.checkpoint)
    packages, skipped = _package(recipe, shipped, out)
    answer = _ask(recipe, shipped, out)
    seconds = time.perf_counter() - began
    return Ran(out, tuple(evaluations), out / "report", shipped, packages, skipped, answer, seconds)


class Making:
    """The files of a recipe's model and of its students.

    ``bases`` are their bf16 GGUFs by student's name, the model's own under none; ``variants`` the quantized.
    """

    def __init__(self, recipe: Recipe, root: Path, out: Path) -> None:
        self._recipe, self._root, self._out = recipe, root, out
        self.model = _source(recipe.model, root, demo.MODEL_DIR)
        self._text = _source(recipe.data.calibration, root, demo.CALIBRATION_TEXT)
        self._judged = _source(recipe.data.text, root, demo.HELDOUT_TEXT)
        self._seen: dict[str, Any] = {"text": self._text, "against": (self._judged,)}
        self.bases: dict[str, Path] = {}
        self.variants: dict[str, Path] = {}

    def student(self, student: Student, folder: Path) -> Any:
        """Prune and teach; the student's model folder."""
        from coldpress import distill, prune

        made, pruned = self.model, None
        if student.prune is not None:
            made = pruned = folder / "prune"
            _step(
                f"prune {folder.name}",
                prune,
                "prune",
                self.model,
                made,
                student.prune,
                **self._seen,
            )
        if student.distill is not None:
            given = {"student": pruned, "text": self._lessons(), "against": (self._judged,)}
            taught = folder / "distill"
            _step(
                f"distill {folder.name}",
                distill,
                "distill",
                self.model,
                taught,
                student.distill,
                **given,
            )
            made = taught
        return made

    def files(self, name: str, model: Any, folder: Path, variants: Variants) -> None:
        """Convert and calibrate a model, and write its variants."""
        from coldpress import calibrate, convert, quantize

        label, base, calibration = f" {name}" * bool(name), folder / "convert", folder / "calibrate"
        options = replace(self._recipe.convert, name=name or self._recipe.convert.name)
        _step(f"convert{label}", convert, "convert", model, base, options)
        self.bases[name] = base
        asked = variants.options()
        if not name or any(not each.endswith("-plain") for each in asked):
            _step(
                f"calibrate{label}",
                calibrate,
                "calibrate",
                model,
                calibration,
                self._recipe.calibrate,
                **self._seen,
            )
        for variant, each in asked.items():
            given: dict[str, Any] = (
                {} if variant.endswith("-plain") else {"calibration": calibration}
            )
            given |= {"model": model} if each.searches else {}
            if each.teach is not None:
                given |= {
                    "teacher": self.model,
                    "text": self._lessons(),
                    "against": (self._judged,),
                }
            path = folder / "quantize" / variant
            known = f"{name}/{variant}" if name else variant
            _step(f"quantize {known}", quantize, "quantize", base, path, each, **given)
            self.variants[known] = path

    def evaluate(self) -> list[Path]:
        """Evaluate the bf16 base first: the others are compared with it."""
        from coldpress.evaluate import hub_questions

        asked = self._recipe.data.questions
        questions = None
        if asked:
            questions = hub_questions.resolve(_source(asked, self._root, demo.QUESTIONS_DIR))
        base = self._evaluated("bf16", self.bases[""], questions, None, None)
        done = [base]
        for student, gguf in self.bases.items():
            if student:
                done.append(self._evaluated(f"{student}-bf16", gguf, questions, base, student))
        for known, gguf in self.variants.items():
            student, _, variant = known.rpartition("/")
            name = f"{student}-{variant}" if student else variant
            done.append(self._evaluated(name, gguf, questions, base, student or None))
        return done

    def _evaluated(
        self, name: str, gguf: Path, questions: Path | None, base: Path | None, student: str | None
    ) -> Path:
        from coldpress import evaluate

        out = self._out / "evaluate" / name
        options = replace(self._recipe.evaluate, student=student)
        given = {"questions": questions, "text": self._judged, "base": base}
        _step(f"evaluate {name}", evaluate, "evaluate", gguf, out, options, **given)
        return out

    def _lessons(self) -> str | Path:
        from coldpress.demo import training_text

        name = self._recipe.data.lessons
        if name == "demo":
            return training_text.training_text()
        found: str | Path = _source(name, self._root, Path(name))
        return found


def _package(
    recipe: Recipe, checkpoint: Path, out: Path
) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Build every image that can be built here; a missing tool skips one, with its reason."""
    from coldpress import package

    made, skipped = [], []
    for options in recipe.package:
        folder = out / "package" / options.target
        try:
            _step(f"package {options.target}", package, "package", checkpoint, folder, options)
            made.append(folder)
        except ToolError as error:
            skipped.append(f"{options.target} image skipped: {error.message}; {error.hint}")
            note(f"  package {options.target:<20} skipped: {error.message} ({error.hint})")
    return tuple(made), tuple(skipped)


def _ask(recipe: Recipe, checkpoint: Path, out: Path) -> Path | None:
    from coldpress.serve import ask

    if recipe.ask is None:
        return None
    _step("ask the runtime", ask, "ask", checkpoint, out / "answer", recipe.ask)
    return out / "answer"


def _step(
    label: str, stage: ModuleType, verb: str, source: Any, out: Path, options: Any, **given: Any
) -> None:
    """Run one verb unless its artifact is current; say which, and how long it took."""
    inputs, plain = stage.plan(source, out, options, **given)
    name = stage.__name__.split(".")[1]
    if artifact.is_current(out, name, inputs, plain):
        note(f"  {label:<28} reused")
        return
    began = time.perf_counter()
    action: Callable[..., object] = getattr(stage, verb)
    action(source, out, options, **given)
    note(f"  {label:<28} {time.perf_counter() - began:6.1f} s")


def _source(name: str, root: Path, embedded: Path) -> Any:
    """``demo`` is what the package embeds; an existing path below ``root`` is a path; else a hub id."""
    if name == "demo":
        return embedded
    return root / name if (root / name).exists() else name
