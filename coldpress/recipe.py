"""A recipe is data, never a program: YAML into strict typed models.

A section holds its stage's own options, so a key that a stage does not know is an error that names the
file, the section and the key. Paths are relative to the recipe's folder; ``demo`` stands for what is
embedded in the package.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from coldpress.calibrate import CalibrateOptions
from coldpress.checkpoint import CheckpointOptions
from coldpress.convert import ConvertOptions
from coldpress.distill import DistillOptions
from coldpress.errors import RecipeError
from coldpress.evaluate import EvaluateOptions
from coldpress.package import PackageOptions
from coldpress.prune import PruneOptions
from coldpress.quantize import QuantizeOptions
from coldpress.report import ReportOptions
from coldpress.serve.ask import AskOptions

_MAX_BYTES = 1 << 20


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Data(_Strict):
    """Texts and questions: ``demo`` or a path, or questions' hub id. The two texts must differ."""

    calibration: str = "demo"
    text: str = "demo"
    questions: str | None = "demo"
    lessons: str = "demo"
    """What students and files are taught on; also a data set's name."""


class Variants(_Strict):
    """What to write, by how it is rounded; see ``QuantizeOptions``."""

    plain: tuple[str, ...] = ()
    """Types and presets without an imatrix."""
    imatrix: tuple[str, ...] = ()
    """Types and presets rounded by ggml under the imatrix."""
    compensated: tuple[str, ...] = ()
    """Types and presets rounded with error feedback."""
    bpw: tuple[float, ...] = ()
    """Budgets in bits per weight: a type per tensor is searched for, and rounded with error feedback."""
    size: tuple[str, ...] = ()
    """Budgets in bytes of the file."""
    heal: bool = False
    """Train what the budgets' files store, on the model's own text."""
    teach: str | None = None
    """Beside each budget's file one that is taught so many tokens of the lessons."""

    def options(self) -> dict[str, QuantizeOptions]:
        """Variant name → how to make it."""
        named = {f"{kind}-plain": QuantizeOptions(type=kind) for kind in self.plain}
        named |= {kind: QuantizeOptions(type=kind, rounding="imatrix") for kind in self.imatrix}
        named |= {
            f"{kind}-compensated": QuantizeOptions(type=kind, rounding="compensated")
            for kind in self.compensated
        }
        budgets: dict[str, dict[str, Any]] = {f"{bits:g}bpw": {"bpw": bits} for bits in self.bpw}
        budgets |= {size: {"size": size} for size in self.size}
        named |= {name: QuantizeOptions(**given, heal=self.heal) for name, given in budgets.items()}
        if self.teach is not None:
            named |= {
                f"{name}-taught": QuantizeOptions(**given, teach=self.teach)
                for name, given in budgets.items()
            }
        return named


class Student(_Strict):
    """Another model made of the recipe's: pruned, taught by it, or both."""

    prune: PruneOptions | None = None
    distill: DistillOptions | None = None
    quantize: Variants = Variants()


class Recipe(_Strict):
    """One model from its checkpoint to its images."""

    name: str
    model: str
    ship: str
    """The variant that becomes the checkpoint and the images; of a student: ``STUDENT/VARIANT``."""
    quantize: Variants
    students: dict[Annotated[str, Field(pattern=r"^[\w.]+$")], Student] = {}
    data: Data = Data()
    convert: ConvertOptions = ConvertOptions()
    calibrate: CalibrateOptions = CalibrateOptions()
    evaluate: EvaluateOptions = EvaluateOptions()
    report: ReportOptions = ReportOptions()
    checkpoint: CheckpointOptions = CheckpointOptions()
    package: tuple[PackageOptions, ...] = ()
    ask: AskOptions | None = None

    def variants(self) -> dict[str, QuantizeOptions]:
        """All files: the model's own, and each student's as ``STUDENT/VARIANT``."""
        made = self.quantize.options()
        for name, student in self.students.items():
            own = student.quantize.options()
            made |= {f"{name}/{variant}": options for variant, options in own.items()}
        return made


def load(path: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        RecipeError: not a readable YAML mapping, an unknown or missing key, a value of the wrong type,
            or ``ship`` names no variant.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise RecipeError(f"{path} is larger than 1 MiB", "a recipe is a short YAML file")
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror}", "check the path; see recipes/") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not YAML: {_one_line(error)}", "mend that line") from error
    recipe = _validate(path, data)
    if recipe.ship not in recipe.variants():
        raise RecipeError(
            f"{path}: ship: no variant {recipe.ship!r} in quantize",
            f"one of: {', '.join(recipe.variants())}",
        )
    for name, student in recipe.students.items():
        if student.prune is None and student.distill is None:
            raise RecipeError(
                f"{path}: students.{name} is neither pruned nor distilled", "give it either"
            )
    return recipe


def _validate(path: Path, data: object) -> Recipe:
    try:
        # Through JSON: pydantic then fills dataclasses and tuples from mappings and lists, strictly.
        return Recipe.model_validate_json(json.dumps(data))
    except TypeError as error:
        raise RecipeError(f"{path}: {error}", "use plain YAML values") from error
    except ValidationError as error:
        first: Any = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RecipeError(f"{path}: {_say(where, first)}", _hint(first)) from error


def _say(where: str, error: Any) -> str:
    match error["type"]:
        case "extra_forbidden" | "unexpected_keyword_argument":
            return f"unknown key {where}"
        case "missing":
            return f"missing key {where}"
        case _:
            return f"{where or 'the recipe'}: {error['msg']}"


def _hint(error: Any) -> str:
    from difflib import get_close_matches

    if error["type"] not in {"extra_forbidden", "unexpected_keyword_argument"}:
        return "see recipes/demo.yaml"
    known = _keys(error["loc"][:-1])
    close = get_close_matches(str(error["loc"][-1]), known, n=1)
    return f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"


def _keys(section: tuple[str | int, ...]) -> list[str]:
    """The keys of a section, from the model's own annotations."""
    keys = list(Recipe.model_fields)
    for part in section:
        if isinstance(part, str) and part in Recipe.model_fields:
            annotation = Recipe.model_fields[part].annotation
            for kind in (annotation, *getattr(annotation, "__args__", ())):
                fields = getattr(kind, "model_fields", None) or getattr(
                    kind, "__dataclass_fields__", None
                )
                if fields:
                    keys = list(fields)
    return keys


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
