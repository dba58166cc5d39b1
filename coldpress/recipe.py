"""A recipe is data, never a program: YAML into strict typed models.

A section holds its stage's own options, so a key that a stage does not know is an error that names the
file, the section and the key. Paths are relative to the recipe's folder; ``demo`` stands for what is
embedded in the package.
"""

import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from coldpress.calibrate import CalibrateOptions
from coldpress.checkpoint import CheckpointOptions
from coldpress.convert import ConvertOptions
from coldpress.errors import RecipeError
from coldpress.evaluate import EvaluateOptions
from coldpress.package import PackageOptions
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
    heal: bool = False
    """Train norms and block scales of the budgets' files."""

    def options(self) -> dict[str, QuantizeOptions]:
        """Variant name → how to make it."""
        named = {f"{kind}-plain": QuantizeOptions(type=kind) for kind in self.plain}
        named |= {kind: QuantizeOptions(type=kind, rounding="imatrix") for kind in self.imatrix}
        named |= {
            f"{kind}-compensated": QuantizeOptions(type=kind, rounding="compensated")
            for kind in self.compensated
        }
        return named | {
            f"{bits:g}bpw": QuantizeOptions(bpw=bits, heal=self.heal) for bits in self.bpw
        }


class Recipe(_Strict):
    """One model from its checkpoint to its images."""

    name: str
    model: str
    ship: str
    """The variant that becomes the checkpoint and the images."""
    quantize: Variants
    data: Data = Data()
    convert: ConvertOptions = ConvertOptions()
    calibrate: CalibrateOptions = CalibrateOptions()
    evaluate: EvaluateOptions = EvaluateOptions()
    report: ReportOptions = ReportOptions()
    checkpoint: CheckpointOptions = CheckpointOptions()
    package: tuple[PackageOptions, ...] = ()
    ask: AskOptions | None = None


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
    if recipe.ship not in recipe.quantize.options():
        raise RecipeError(
            f"{path}: ship: no variant {recipe.ship!r} in quantize",
            f"one of: {', '.join(recipe.quantize.options())}",
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
