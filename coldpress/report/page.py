"""The report's words: what the rows say in one sentence, and the pages they are set on."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from coldpress import __version__
from coldpress.cost import REQUEST_TOKENS
from coldpress.evaluate.result import Evaluation
from coldpress.platforms import Table, table
from coldpress.report import sections, words
from coldpress.report.compare import Compared, Row, base_of
from coldpress.report.figures import Drawing
from coldpress.report.paired import scored
from coldpress.report.sections import Categories, Costs, Pair, Point, Start, TaskLine
from coldpress.report.stage import ReportOptions

_NOTES = {
    "cost_note": (
        "An estimate, not a measurement: it takes the platform's vCPU to generate as fast as a thread of"
        " the machine measured here, a vCPU per thread, one request at a time. The instance is the"
        " smallest with so many vCPUs that holds the measured peak memory; of several measured thread"
        " counts the cheapest counts. Prompts, cold starts and the"
        " free tier are not in it. Arm was not measured: its column is the same speed at its price."
    ),
    "start_note": (
        "In a process that has the libraries loaded; the first token follows a prompt of 32 tokens. Cold:"
        " the kernel was told to forget the file; the host and the disk may still have had it."
    ),
}


@dataclass(frozen=True)
class Facts:
    """Everything a page says, file by file in the rows' order.

    ``subjects``: subject → accuracy of each file in ``compared``. ``pairs``: every file against
    every smaller one. ``categories`` are empty where the questions are not MMLU's.
    """

    title: str
    headline: str
    scoring: str
    reason: str
    rows: tuple[Row, ...]
    measured: tuple[tuple[str, str], ...]
    compared: tuple[str, ...]
    subjects: dict[str, tuple[float, ...]]
    pairs: tuple[Pair, ...]
    categories: tuple[Categories, ...]
    tasks: tuple[TaskLine, ...]
    costs: tuple[Costs, ...]
    prices: Table
    request_tokens: int
    starts: tuple[Start, ...]
    grid: tuple[Point, ...]


def facts(compared: Compared, options: ReportOptions) -> Facts:
    """Put evaluations and their rows into words."""
    rows, read = compared.rows, compared.evaluations
    names = [row.name for row in rows]
    shown, subjects = _subjects(compared)
    return Facts(
        title=options.title,
        headline=_headline(rows),
        scoring=compared.scoring,
        reason=_reason(rows, options.max_loss_points),
        rows=rows,
        measured=tuple(_measured(read)),
        compared=shown,
        subjects=subjects,
        pairs=sections.pairs(
            names, [scored(each, compared.scoring) for each in compared.answers], options.seed
        ),
        categories=sections.categories(names, compared.answers),
        tasks=sections.tasks(read),
        costs=sections.costs(names, read),
        prices=table(),
        request_tokens=REQUEST_TOKENS,
        starts=sections.starts(names, read),
        grid=sections.grid(names, read),
    )


def html(facts: Facts, drawings: Mapping[str, Drawing]) -> str:
    """One page with nothing outside it: style and figures are inside, no script."""
    matrix = {(pair.name, pair.reference): pair for pair in facts.pairs}
    svgs = {name: Markup(made.svg) for name, made in drawings.items()}  # noqa: S704  # drawn by us
    return (
        _environment(escape=True)
        .get_template("page.html.j2")
        .render(**_given(facts), drawings=drawings, svgs=svgs, matrix=matrix)
    )


def markdown(facts: Facts, drawings: Mapping[str, Drawing]) -> str:
    """The same for a README, a pull request or a job's summary."""
    return (
        _environment(escape=False)
        .get_template("page.md.j2")
        .render(**_given(facts), drawings=drawings)
    )


def _given(facts: Facts) -> dict[str, Any]:
    """The facts and what both pages say of them in the same words."""
    same = [row.name for row in facts.rows if row.indistinguishable]
    base = next((row.name for row in facts.rows if row.is_base), None)
    other = "continuation" if facts.scoring == "letter" else "letter"
    return {**vars(facts), "same": same, "base": base, "other": other, **_NOTES}


def plain(facts: Facts) -> dict[str, Any]:
    """The same as plain values."""
    prices = facts.prices.model_dump(mode="json", include={"date", "platforms"})
    return {**asdict(facts), "prices": prices}


def _environment(*, escape: bool) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=escape,  # noqa: S701  # off for Markdown only
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters = (
        words.size, words.percent, words.points, words.number, words.kl, words.method,
        words.seconds, words.p, words.usd, words.platform, words.instance, words.interval, words.figure,
    )  # fmt: skip
    for filter_ in filters:
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
    base = next((row.name for row in rows if row.is_base), "the base")
    row = next((row for row in rows if row.recommended), None)
    if row is None:
        return f"No file is indistinguishable from {base} or within {limit} of its accuracy."
    if row.indistinguishable:
        why = f"It is the smallest file indistinguishable from {base}"
    else:
        why = f"No file is indistinguishable from {base}; this is the smallest that loses at most {limit}"
    interval = f"{words.points(row.delta_low)} to {words.points(row.delta_high)}"
    return f"{why}; the 95{words.NBSP}% interval of its difference is {interval} points."


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


def _subjects(compared: Compared) -> tuple[tuple[str, ...], dict[str, tuple[float, ...]]]:
    """Accuracy by subject of the base, the recommended and the smallest file."""
    files = list(zip(compared.rows, compared.evaluations, strict=True))
    chosen = [file for file in files if file[0].is_base or file[0].recommended]
    chosen = [*reversed(chosen), *(file for file in files[:1] if file not in chosen)]
    tables = [
        each.questions[compared.scoring].by_subject
        for _, each in chosen
        if compared.scoring in each.questions
    ]
    if len(tables) != len(chosen) or not tables:
        return (), {}
    subjects = {name: tuple(table[name] for table in tables) for name in sorted(tables[0])}
    return tuple(row.name for row, _ in chosen), subjects
