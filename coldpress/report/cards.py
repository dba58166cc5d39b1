"""A model card per compared file, from the artifact that was evaluated where it lies near its evaluation."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from coldpress import artifact
from coldpress.card import Card, Measured, of_folder
from coldpress.errors import InputError
from coldpress.evaluate.result import Evaluation
from coldpress.report.compare import Compared

FOLDER = "cards"
_GGUF = "model.gguf"
_MADE = {"convert", "quantize", "checkpoint"}


def measured_artifacts(evaluations: Sequence[Path]) -> dict[Path, Path]:
    """Evaluation → the artifact that it measured, of those whose artifact is found.

    It is looked for by the digest that the evaluation names: beside it, beside its folder, and in
    ``quantize/`` there, where a run puts it.
    """
    known = _artifacts(evaluations)
    read = {folder: _manifest(folder) for folder in evaluations}
    digests = {folder: of.inputs.get("gguf", "") for folder, of in read.items() if of is not None}
    return {
        folder: known[digest]
        for folder, digest in digests.items()
        if digest in known and (known[digest] / _GGUF).is_file()
    }


def texts(compared: Compared, conditions: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """File in the report's folder → the card of one evaluated file."""
    base = next((row for row in compared.rows if row.is_base), None)
    made, known = measured_artifacts(compared.folders), _artifacts(compared.folders)
    written: dict[str, str] = {}
    for folder, row, each in zip(
        compared.folders, compared.rows, compared.evaluations, strict=True
    ):
        measured = Measured(row, base, conditions)
        card = _card(row.name, each, made.get(folder), known, measured)
        written[_unused(row.name, written)] = card.text()
    return written


def _card(
    name: str,
    each: Evaluation,
    folder: Path | None,
    known: Mapping[str, Path],
    measured: Measured,
) -> Card:
    if folder is None:
        return Card(name, each.type, measured=measured)
    inputs = artifact.read(folder).inputs
    sources = {
        role: artifact.read(known[digest]) for role, digest in inputs.items() if digest in known
    }
    return of_folder(name, each.type, folder, sources, measured)


def _unused(name: str, taken: Mapping[str, str]) -> str:
    stem = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "file"
    free = (f"{FOLDER}/{stem}{'' if i == 1 else f'-{i}'}.md" for i in range(1, len(taken) + 2))
    return next(each for each in free if each not in taken)


def _artifacts(evaluations: Sequence[Path]) -> dict[str, Path]:
    """Digest, of the artifact and of its GGUF alone → folder, of everything near the evaluations."""
    found: dict[str, Path] = {}
    for folder in _near(evaluations):
        manifest = _manifest(folder)
        if manifest is None or manifest.stage not in _MADE | {"calibrate"}:
            continue
        found.setdefault(manifest.digest, folder)
        if manifest.stage in _MADE:
            for file in manifest.files:
                if file.name == _GGUF:
                    found.setdefault(file.sha256, folder)
    return found


def _near(evaluations: Sequence[Path]) -> Iterator[Path]:
    roots = dict.fromkeys(
        root
        for folder in evaluations
        for root in (folder.parent, folder.parent.parent, folder.parent.parent / "quantize")
    )
    for root in roots:
        yield from sorted(path.parent for path in root.glob(f"*/{artifact.MANIFEST}"))


def _manifest(folder: Path) -> artifact.Manifest | None:
    """A folder's manifest; None where there is none that this version reads."""
    try:
        return artifact.read(folder)
    except (InputError, OSError):
        return None
