"""What a finished run prints last: the table, where things are, and the runtime's answer."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from coldpress import artifact
from coldpress.checkpoint.source import locate
from coldpress.report import Row, rows

if TYPE_CHECKING:
    from coldpress.pipeline import Ran

_HEAD = ("file", "bpw", "MB", "accuracy", "KL", "top-1", "tok/s", "")


def text(ran: "Ran") -> str:
    """The whole summary as plain text."""
    parts = ["", _table(rows(ran.evaluations)), "* no smaller file has a lower KL divergence", ""]
    parts.append(f"report      {ran.report / 'report.html'}")
    parts.append(f"checkpoint  {locate(ran.checkpoint)}")
    for folder in ran.packages:
        image = next(file for file in artifact.read(folder).files if file.name == "image.tar")
        parts.append(f"image       {folder / image.name}  ({image.size_bytes / 1e6:.1f} MB)")
    parts += [f"skipped     {reason}" for reason in ran.skipped]
    if ran.answer is not None:
        parts += ["", *_answer(ran.answer)]
    return "\n".join(parts)


def _answer(folder: Path) -> list[str]:
    answer = json.loads((folder / "answer.json").read_text())
    return [
        f"asked       {answer['prompt']}",
        f"answered    {answer['text']}",
        f"cold start  {answer['cold_start_to_first_token_s']:.2f} s from process start to first"
        f" token, then {answer['tok_per_s']:.0f} tokens/s",
    ]


def _table(compared: list[Row]) -> str:
    lines = [_HEAD, *(_cells(row) for row in compared)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(_HEAD))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in (0, len(_HEAD) - 1) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _cells(row: Row) -> tuple[str, ...]:
    marks = "*" * row.best_kl + " base" * row.is_base + " recommended" * row.recommended
    return (
        row.name,
        f"{row.bits_per_weight:.2f}",
        f"{row.size_bytes / 1e6:.2f}",
        "–" if row.accuracy is None else f"{100 * row.accuracy:.1f} %",
        "–" if row.kl_mean is None else f"{row.kl_mean:.4f}",
        "–" if row.same_top1 is None else f"{100 * row.same_top1:.1f} %",
        "–" if row.generate_tok_per_s is None else f"{row.generate_tok_per_s:.0f}",
        marks.strip(),
    )
