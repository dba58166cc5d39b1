"""One record: what a ``coldpress run`` or ``coldpress evaluate`` did, from the artifacts it left.

A record holds no clock; when it was written is in its file's name, see ``store``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from coldpress import artifact

if TYPE_CHECKING:
    from coldpress.pipeline import Ran
    from coldpress.recipe import Recipe
    from coldpress.report import Row

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Figures:
    """One file's headline; None was not measured. ``accuracy`` is a share."""

    size_bytes: int
    bits_per_weight: float
    accuracy: float | None
    kl_nats: float | None
    perplexity: float | None
    tok_per_s: float | None


@dataclass(frozen=True)
class Record:
    """What was run, on what, with what, and what came of it.

    ``run_id`` identifies the work, as an artifact's does: the same work done twice has it twice.
    ``recipe`` is the digest of a recipe's resolved values; ``inputs`` role → digest; ``machine`` what the
    speeds were measured on; ``figures`` by the file's name; ``paths`` where everything was written.
    """

    command: Literal["run", "evaluate"]
    name: str
    run_id: str
    recipe: str | None
    inputs: dict[str, str]
    options: dict[str, Any]
    tools: dict[str, str]
    machine: dict[str, str]
    figures: dict[str, Figures]
    paths: dict[str, str]
    format_version: int = FORMAT_VERSION


def of_evaluation(gguf: Path, out: Path) -> Record:
    """The record of an evaluation.

    Args:
        gguf: what was evaluated.
        out: the artifact that evaluate wrote.
    """
    from coldpress.report import rows

    manifest = artifact.read(out)
    (row,) = rows([out])
    return Record(
        command="evaluate",
        name=row.name,
        run_id=manifest.run_id,
        recipe=None,
        inputs=manifest.inputs,
        options=manifest.options,
        tools=manifest.tools,
        machine=_machine(out),
        figures=_figures([row]),
        paths={"gguf": _full(gguf), "out": _full(out)},
    )


def of_run(recipe: "Recipe", ran: "Ran") -> Record:
    """The record of a recipe's run."""
    from coldpress.report import rows

    base = ran.evaluations[0]
    stages = {"convert": ran.out / "convert", "calibrate": ran.out / "calibrate", "evaluate": base}
    made = {stage: artifact.read(folder) for stage, folder in stages.items()}
    options = recipe.model_dump(mode="json")
    digest = artifact.sha256_json(options)
    folders = [*stages.values(), *ran.evaluations[1:], ran.report, ran.checkpoint, *ran.packages]
    ids = [artifact.read(folder).run_id for folder in folders]
    return Record(
        command="run",
        name=recipe.name,
        run_id=artifact.sha256_json(["run", digest, ids])[:16],
        recipe=digest,
        inputs={
            f"{stage} {role}": digest
            for stage, manifest in made.items()
            for role, digest in sorted(manifest.inputs.items())
        },
        options=options,
        tools={name: of for manifest in made.values() for name, of in manifest.tools.items()},
        machine=_machine(base),
        figures=_figures(rows(ran.evaluations)),
        paths=_paths(ran),
    )


def _figures(table: "Sequence[Row]") -> dict[str, Figures]:
    return {
        row.name: Figures(
            size_bytes=row.size_bytes,
            bits_per_weight=row.bits_per_weight,
            accuracy=row.accuracy,
            kl_nats=row.kl_mean,
            perplexity=row.perplexity,
            tok_per_s=row.generate_tok_per_s,
        )
        for row in table
    }


def _machine(evaluation: Path) -> dict[str, str]:
    from coldpress.evaluate import result

    conditions = result.read(evaluation).conditions
    return {
        "cpu": conditions.cpu,
        "cpu_backend": conditions.cpu_backend,
        "threads": str(conditions.threads),
    }


def _paths(ran: "Ran") -> dict[str, str]:
    named = {"out": ran.out, "report": ran.report, "checkpoint": ran.checkpoint}
    named |= {f"package {folder.name}": folder for folder in ran.packages}
    named |= {} if ran.answer is None else {"answer": ran.answer}
    return {name: _full(path) for name, path in named.items()}


def _full(path: Path) -> str:
    return str(path.resolve())
