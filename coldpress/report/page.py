"""The report's words: what the rows say in one sentence, and the pages they are set on."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from coldpress import __version__
from coldpress.evaluate.result import Evaluation
from coldpress.report import words
from coldpress.report.compare import Row, base_of
from coldpress.report.stage import ReportOptions


@dataclass(frozen=True)
class Facts:
    """Everything a page says. ``subjects``: subject → accuracy of each file in ``compared``."""

    title: str
    headline: str
    reason: str
    rows: tuple[Row, ...]
    measured: tuple[tuple[str, str], ...]
    compared: tuple[str, ...]
    subjects: dict[str, tuple[float, ...]]


def facts(read: Sequence[Evaluation], rows: Sequence[Row], options: ReportOptions) -> Facts:
    """Put evaluations and their rows into words."""
    compared, subjects = _subjects(read, rows)
    return Facts(
        title=options.title,
        headline=_headline(rows),
        reason=_reason(rows, options.max_loss_points),
        rows=tuple(rows),
        measured=tuple(_measured(read)),
        compared=compared,
        subjects=subjects,
    )


def html(facts: Facts, drawings: Mapping[str, str]) -> str:
    """One page with nothing outside it: style and figures are inside, no script."""
    svgs = {name: Markup(svg) for name, svg in drawings.items()}  # noqa: S704  # drawn by us
    return (
        _environment(escape=True).get_template("page.html.j2").render(**vars(facts), drawings=svgs)
    )


def markdown(facts: Facts, drawings: Sequence[str]) -> str:
    """The same for a README, a pull request or a job's summary."""
    return (
        _environment(escape=False)
        .get_template("page.md.j2")
        .render(**vars(facts), drawings=drawings)
    )


def plain(facts: Facts) -> dict[str, Any]:
    """The same as plain values."""
    return asdict(facts)


def _environment(*, escape: bool) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=escape,  # noqa: S701  # off for Markdown only
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for filter_ in (words.size, words.percent, words.points, words.number, words.kl, words.method):
        environment.filters[filter_.__name__] = filter_
    return environment


def _headline(rows: Sequence[Row]) -> str:
    base = next((row for row in rows if row.is_base), None)
    chosen = next((row for row in rows if row.recommended), None)
    if base is None or base.accuracy is None:
        return f"{len(rows)} files compared."
    if chosen is None or chosen.accuracy is None:
        return f"No smaller file keeps {base.name}'s accuracy of {words.percent(base.accuracy)}."
    return (
        f"{chosen.name} answers {words.percent(chosen.accuracy)} of the questions right, "
        f"{base.name} {words.percent(base.accuracy)}, "
        f"in a file {base.size_bytes / chosen.size_bytes:.1f} times smaller."
    )


def _reason(rows: Sequence[Row], max_loss_points: float) -> str:
    limit = f"{max_loss_points:g} point" + ("" if max_loss_points == 1 else "s")
    if not any(row.recommended for row in rows):
        return f"No file is within {limit} of the base's accuracy."
    return f"It is the smallest file within {limit} of the base's accuracy."


def _measured(read: Sequence[Evaluation]) -> list[tuple[str, str]]:
    """How it was measured, as (what, value); values that differ between files are all listed."""

    def every(values: Sequence[str]) -> str:
        return ", ".join(dict.fromkeys(values))

    base = read[base_of(read) or 0]
    conditions = [each.conditions for each in read]
    asked = {scoring: each.n for scoring, each in base.questions.items()}
    said = [
        ("Base", f"{base.name}, {words.number(base.n_params / 1e6)} M parameters"),
        ("Runtime", every([f"llama-cpp-python {each.llama_cpp_python}" for each in conditions])),
        ("Report", f"coldpress {__version__}"),
        ("CPU", every([each.cpu for each in conditions])),
        ("CPU backend", every([each.cpu_backend for each in conditions])),
        ("Threads", every([str(each.threads) for each in conditions])),
        ("Profile", base.profile),
    ]
    for scoring, n in asked.items():
        shots = base.conditions.num_fewshot if scoring == "letter" else 0
        said.append((f"Questions, {scoring}", f"{n:,} with {shots} examples each"))
    if base.perplexity is not None:
        said.append(("Text", f"{base.perplexity.n_tokens:,} tokens scored"))
    digests = (base.conditions.questions_digest, base.conditions.text_digest)
    for what, digest in zip(("Questions' digest", "Text's digest"), digests, strict=True):
        if digest is not None:
            said.append((what, digest[:16]))
    return said


def _subjects(
    read: Sequence[Evaluation], rows: Sequence[Row]
) -> tuple[tuple[str, ...], dict[str, tuple[float, ...]]]:
    """Accuracy by subject of the base, the recommended and the smallest file."""
    chosen = [row for row in rows if row.is_base or row.recommended]
    chosen = [*reversed(chosen), *(row for row in rows[:1] if row not in chosen)]
    by_size = {(each.name, each.size_bytes): each for each in read}
    found = [by_size.get((row.name, row.size_bytes)) for row in chosen]
    tables = [
        each.questions["continuation"].by_subject
        for each in found
        if each is not None and "continuation" in each.questions
    ]
    if len(tables) != len(chosen) or not tables:
        return (), {}
    subjects = {name: tuple(table[name] for table in tables) for name in sorted(tables[0])}
    return tuple(row.name for row in chosen), subjects
