"""A recipe's stages in order: what is done is reused, what was interrupted goes on.

Each stage is an artifact folder under ``out``; a stage is skipped when the folder holds the result of
exactly the same work (see ``artifact.run_id``).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from coldpress import artifact, demo
from coldpress.errors import ToolError
from coldpress.progress import note
from coldpress.recipe import Recipe


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
    from coldpress import calibrate, checkpoint, convert, quantize, report

    began = time.perf_counter()
    model = _source(recipe.model, root, demo.MODEL_DIR)
    base = out / "convert"
    _step("convert", convert, "convert", model, base, recipe.convert)
    calibration = out / "calibrate"
    text = _source(recipe.data.calibration, root, demo.CALIBRATION_TEXT)
    against = _evaluated(recipe, root)
    given: dict[str, Any] = {"text": text, "against": against}
    _step("calibrate", calibrate, "calibrate", model, calibration, recipe.calibrate, **given)
    for name, options in recipe.quantize.options().items():
        given = {} if name.endswith("-plain") else {"calibration": calibration}
        given |= {"model": model} if options.searches else {}
        folder = out / "quantize" / name
        _step(f"quantize {name}", quantize, "quantize", base, folder, options, **given)
    evaluations = _evaluate(recipe, root, out)
    _step("report", report, "report", evaluations, out / "report", recipe.report)
    shipped = out / "checkpoint"
    _step(
        "checkpoint",
        checkpoint,
        "checkpoint",
        out / "quantize" / recipe.ship,
        shipped,
        recipe.checkpoint,
    )
    packages, skipped = _package(recipe, shipped, out)
    answer = _ask(recipe, shipped, out)
    seconds = time.perf_counter() - began
    return Ran(out, tuple(evaluations), out / "report", shipped, packages, skipped, answer, seconds)


def _evaluate(recipe: Recipe, root: Path, out: Path) -> list[Path]:
    """Evaluate the bf16 base first: the others are compared with it."""
    from coldpress import evaluate
    from coldpress.evaluate import hub_questions

    questions = recipe.data.questions
    given: dict[str, Any] = {
        "questions": questions
        and hub_questions.resolve(_source(questions, root, demo.QUESTIONS_DIR)),
        "text": _source(recipe.data.text, root, demo.HELDOUT_TEXT),
    }
    base = out / "evaluate" / "bf16"
    _step(
        "evaluate bf16",
        evaluate,
        "evaluate",
        out / "convert",
        base,
        recipe.evaluate,
        base=None,
        **given,
    )
    done = [base]
    for name in recipe.quantize.options():
        done.append(out / "evaluate" / name)
        _step(
            f"evaluate {name}",
            evaluate,
            "evaluate",
            out / "quantize" / name,
            done[-1],
            recipe.evaluate,
            base=base,
            **given,
        )
    return done


def _evaluated(recipe: Recipe, root: Path) -> tuple[Path, ...]:
    """The text that the result is evaluated on, which must not be calibrated on."""
    return (_source(recipe.data.text, root, demo.HELDOUT_TEXT),)


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
