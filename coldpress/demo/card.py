"""Write ``CARD.md`` from ``card.template.md`` and the measured numbers in ``scores.json``.

python -m coldpress.demo.card
"""

from __future__ import annotations

import json
from typing import Any

from . import HERE

CARD = HERE / "CARD.md"


def render_card() -> str:
    """The card's text."""
    report = json.loads((HERE / "scores.json").read_text(encoding="utf-8"))
    template = (HERE / "card.template.md").read_text(encoding="utf-8")
    everything = report["scores"]["all"]
    return template.format(
        table=score_table(report["scores"]),
        questions=everything["questions"],
        subjects=len(report["scores"]) - 1,
        continuation=f"{everything['continuation']:.1%}",
        letter=f"{everything['letter']:.1%}",
        spread=report["spread"],
        steps=f"{report['steps']:,}",
        tokens=f"{report['tokens'] / 1e6:.1f} million",
        minutes=round(report["train_s"] / 60),
    )


def score_table(scores: dict[str, Any]) -> str:
    """One Markdown row per subject, the mean last."""
    lines = ["| subject | questions | continuation | letter |", "|---|---:|---:|---:|"]
    for subject, row in scores.items():
        name = f"**{subject}**" if subject == "all" else subject.replace("_", " ")
        cells = (name, row["questions"], f"{row['continuation']:.1%}", f"{row['letter']:.1%}")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    """Write the card."""
    CARD.write_text(render_card(), encoding="utf-8")


if __name__ == "__main__":
    main()
