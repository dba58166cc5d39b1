"""Evaluations → ``report.html``, ``report.md``, ``report.json``, the figures as SVG and a card per file."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from coldpress import __version__, artifact
from coldpress.errors import UsageError
from coldpress.platforms import TABLE


@dataclass(frozen=True)
class ReportOptions:
    """How to write the report.

    Args:
        title: the page's title.
        max_loss_points: points of accuracy that the recommended file may lose to the base, if
            every file can be told from it.
        seed: draws the bootstrap's samples.
    """

    title: str = "What compression costs"
    max_loss_points: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_loss_points < 0:
            raise UsageError(f"max_loss_points is {self.max_loss_points}", "0 or more")


@dataclass(frozen=True)
class Reported:
    """The written files, and the file that is recommended, if one is good enough."""

    html: str
    markdown: str
    json: str
    figures: tuple[str, ...]
    cards: tuple[str, ...]
    n_files: int
    recommended: str | None


def plan(
    evaluations: Sequence[Path], out: Path, options: ReportOptions
) -> tuple[dict[str, Path], dict[str, object]]:
    """What a report depends on: (inputs, resolved options)."""
    if not evaluations:
        raise UsageError("no evaluations are given", "name the folders that evaluate wrote")
    from coldpress.report.cards import measured_artifacts

    inputs = {f"evaluation {i:02d}": folder for i, folder in enumerate(evaluations)}
    made = measured_artifacts(evaluations)
    inputs |= {f"file {i:02d}": made[of] for i, of in enumerate(evaluations) if of in made}
    prices = artifact.sha256_file(TABLE)
    return inputs, {**asdict(options), "coldpress": __version__, "prices": prices}


def report(evaluations: Sequence[Path], out: Path, options: ReportOptions) -> Reported:
    """Compare evaluations and write the artifact ``out``.

    Args:
        evaluations: folders that ``evaluate`` wrote, the base's among them.

    Raises:
        UsageError: they were not taken with the same questions, text and profile.
        InputError: a folder holds no evaluation.
    """
    from coldpress.report import cards, figures, page
    from coldpress.report.compare import side_by_side

    inputs, resolved = plan(evaluations, out, options)
    compared = side_by_side(evaluations, options.max_loss_points, options.seed)
    table = compared.rows
    drawings = figures.draw(table)
    facts = page.facts(compared, options)
    written = cards.texts(compared, facts.measured)
    texts = {
        "report.html": page.html(facts, drawings),
        "report.md": page.markdown(facts, drawings),
        "report.json": json.dumps(page.plain(facts), indent=1, ensure_ascii=False) + "\n",
        **{f"{name}.svg": made.svg for name, made in drawings.items()},
        **written,
    }
    with artifact.create(out, "report", inputs=inputs, options=resolved) as draft:
        (draft.folder / cards.FOLDER).mkdir()
        for name, text in texts.items():
            (draft.folder / name).write_text(text, encoding="utf-8")
        for name, made in drawings.items():
            (draft.folder / f"{name}.png").write_bytes(made.png)
    return Reported(
        html=str(out / "report.html"),
        markdown=str(out / "report.md"),
        json=str(out / "report.json"),
        figures=tuple(str(out / f"{name}.svg") for name in drawings),
        cards=tuple(str(out / name) for name in written),
        n_files=len(table),
        recommended=next((row.name for row in table if row.recommended), None),
    )
