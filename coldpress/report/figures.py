"""The report's figures, as SVG that follows the page into the dark, and as PNG.

Colours go in as fixed marks and leave as CSS variables with the light colour as fallback, so that a
figure works alone and inside the page. Equal rows give equal bytes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO, StringIO
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from coldpress.report import words
from coldpress.report.compare import Row, pareto
from coldpress.report.labels import Label, place

_SETTINGS: Any = {
    "svg.hashsalt": "coldpress",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
# Okabe and Ito's palette and a violet, told apart by the colour-blind; the marker says the same again.
_SERIES = {
    "plain": ("#0072b2", "o"),
    "imatrix": ("#d55e00", "s"),
    "preset": ("#009e73", "D"),
    "compensated": ("#e69f00", "P"),
    "budget": ("#7b3fb0", "X"),
    "taught": ("#882255", "v"),
    "student": ("#44aa99", "p"),
    "file": ("#cc79a7", "^"),
    "base": ("#222222", "*"),
}
_JOINED = {"plain", "imatrix", "compensated", "budget", "taught"}
_INK, _MUTED, _GRID = "#222222", "#6b6b6a", "#dededd"
_VARIABLES = {
    _INK: "--ink",
    _MUTED: "--muted",
    _GRID: "--grid",
    **{colour: f"--{name}" for name, (colour, _) in _SERIES.items() if name != "base"},
}
_CHANCE = 0.25
_SMALLEST_KL = 1e-7
_PNG_DPI = 160
_TICKS = (1, 1.5, 2, 3, 4, 6, 8)  # of each decade of bytes, far enough apart on a log axis
_SHARES = (1, 2, 5, 10, 25, 50, 75, 90, 95, 98, 99)

Value = Callable[[Row], float | None]


@dataclass(frozen=True)
class Drawing:
    """A figure: ``svg`` in the page's colours, ``png`` on white; ``alt`` for who cannot see it."""

    svg: str
    png: bytes
    alt: str
    caption: str


@dataclass(frozen=True)
class _Plot:
    """A value of every file against its size, or ``by_bits``; ``joined``: a line per method."""

    what: str
    y_label: str
    y: Value
    caption: str
    dress: Callable[[Any, Sequence[Row]], None]
    by_bits: bool = False
    joined: bool = False

    def x(self, row: Row) -> float:
        return row.bits_per_weight if self.by_bits else row.size_bytes


def draw(rows: Sequence[Row]) -> dict[str, Drawing]:
    """Name → drawing, of what was measured of at least one file that is not the base."""
    plots = {
        "accuracy": _Plot(
            "Accuracy", "questions answered right", _odds, "Questions answered right against file size,"
            " a series per method. The scale is one of odds: from 98 to 99 % as far as from 50 to 67 %.",
            _dress_accuracy, joined=True,
        ),
        "kl": _Plot(
            "KL divergence", "KL divergence from the base, nats per token", _kl, "KL divergence from the"
            " base against file size (both log): lower is nearer to the base. The broad line joins the"
            " files that no smaller one beats.", _dress_kl, joined=True,
        ),
        "perplexity": _Plot(
            "Perplexity", "perplexity over the base's", _perplexity(rows), "Perplexity as a multiple of the"
            " base's against bits per weight; below 1 the text is likelier than to the base.",
            _dress_level(1.0, "the base"), by_bits=True,
        ),
        "speed": _Plot(
            "Speed", "tokens generated per second", lambda row: row.generate_tok_per_s, "Tokens generated"
            " per second against file size, one request at a time.", _dress_from_zero,
        ),
        "start": _Plot(
            "Start", "seconds to the first token", lambda row: row.first_token_s, "Seconds from opening"
            " the file to the first token against file size; cold where that was measured.",
            _dress_from_zero,
        ),
        "cost": _Plot(
            "Cost", "US dollars per million tokens", lambda row: row.usd_per_million_tokens, "Estimated cost"
            " of a million generated tokens on Lambda x86 against file size.", _dress_from_zero,
        ),
    }  # fmt: skip
    with mpl.rc_context(_SETTINGS):
        return {name: made for name, plot in plots.items() if (made := _draw(plot, rows))}


def _draw(plot: _Plot, rows: Sequence[Row]) -> Drawing | None:
    shown = [row for row in rows if plot.y(row) is not None]
    if all(row.is_base for row in shown):
        return None
    figure, axes = _figure(plot.y_label)
    _series(axes, shown, plot)
    (_bits if plot.by_bits else _sizes)(axes, [plot.x(row) for row in shown])
    plot.dress(axes, shown)
    place(axes, _labels(shown, plot))
    against = "bits per weight" if plot.by_bits else "size"
    alt = f"{plot.what} of every file against its {against}; the numbers are in the tables"
    return Drawing(_svg(figure), _png(figure), alt, plot.caption)


def _odds(row: Row) -> float | None:
    """Log odds of a right answer; all or none right count as half a percent from it."""
    return None if row.accuracy is None else _logit(row.accuracy)


def _logit(share: float) -> float:
    share = min(max(share, 0.005), 0.995)
    return math.log(share / (1 - share))


def _dress_accuracy(axes: Any, rows: Sequence[Row]) -> None:
    base = next((row for row in rows if row.is_base), None)
    if base is not None and base.accuracy is not None:
        _level(axes, _logit(base.accuracy), f"{base.name} {words.percent(base.accuracy)}")
    _level(axes, _logit(_CHANCE), "chance 25 %")
    values = [_logit(row.accuracy or 0) for row in rows]
    axes.set_ylim(min(_logit(_CHANCE), *values) - 0.25, max(values) + 0.35)
    axes.yaxis.set_major_locator(FixedLocator([_logit(share / 100) for share in _SHARES]))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda odds, _: f"{100 / (1 + math.exp(-odds)):.0f} %")
    )


def _dress_kl(axes: Any, rows: Sequence[Row]) -> None:
    axes.set_yscale("log")
    front = pareto([(row.size_bytes, _kl(row) or 0) for row in rows])
    line = [row for row, best in zip(rows, front, strict=True) if best]
    xs, ys = [row.size_bytes for row in line], [_kl(row) for row in line]
    axes.plot(xs, ys, color=_MUTED, linewidth=5, alpha=0.25, zorder=1, label="Pareto line")
    _legend(axes)
    axes.margins(y=0.12)


def _dress_level(value: float, text: str) -> Callable[[Any, Sequence[Row]], None]:
    def dress(axes: Any, _rows: Sequence[Row]) -> None:
        _level(axes, value, text)
        axes.margins(y=0.12)

    return dress


def _dress_from_zero(axes: Any, _rows: Sequence[Row]) -> None:
    axes.margins(y=0.15)
    axes.set_ylim(bottom=0)


def _kl(row: Row) -> float | None:
    return None if row.kl_mean is None else max(row.kl_mean, _SMALLEST_KL)


def _perplexity(rows: Sequence[Row]) -> Value:
    base = next((row.perplexity for row in rows if row.is_base), None)

    def ratio(row: Row) -> float | None:
        return row.perplexity / base if base and row.perplexity and not row.is_base else None

    return ratio


def _labels(rows: Sequence[Row], plot: _Plot) -> list[Label]:
    return [
        Label(plot.x(row), plot.y(row) or 0.0, row.type, _SERIES[row.method][0])
        for row in rows
        if not row.is_base
    ]


def _figure(y_label: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(7.2, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_ylabel(y_label, color=_INK)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_MUTED, length=0)
    for spine in axes.spines.values():
        spine.set_color(_GRID)
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    return figure, axes


def _series(axes: Any, rows: Sequence[Row], plot: _Plot) -> None:
    for name, (colour, marker) in _SERIES.items():
        mine = [row for row in rows if ("base" if row.is_base else row.method) == name]
        if not mine:
            continue
        xs, ys = [plot.x(row) for row in mine], [plot.y(row) for row in mine]
        line = "-" if plot.joined and name in _JOINED else ""
        size = 11 if marker == "*" else 7
        axes.plot(
            xs, ys, line + marker, color=colour, markersize=size, linewidth=1.2, zorder=3,
            label=words.method(name),
        )  # fmt: skip
    _legend(axes)


def _legend(axes: Any) -> None:
    axes.legend(frameon=False, labelcolor=_INK, loc="best", fontsize=9)


def _level(axes: Any, value: float, text: str) -> None:
    axes.axhline(value, color=_MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.annotate(
        text, (0, value), xycoords=("axes fraction", "data"), xytext=(4, 4),
        textcoords="offset points", ha="left", fontsize=9, color=_MUTED,
    )  # fmt: skip


def _sizes(axes: Any, sizes: Sequence[float]) -> None:
    """A log axis of file sizes with a margin for the labels."""
    axes.set_xlabel("file size", color=_INK)
    axes.set_xscale("log")
    axes.set_xlim(min(sizes) / 1.12, max(sizes) * 1.18)
    axes.xaxis.set_major_locator(LogLocator(subs=_TICKS))
    axes.xaxis.set_major_formatter(FuncFormatter(_tick))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()


def _bits(axes: Any, _bits: Sequence[float]) -> None:
    axes.set_xlabel("bits per weight", color=_INK)
    axes.margins(x=0.12)


def _tick(n_bytes: float, _position: int) -> str:
    unit, scale = ("GB", 1e9) if n_bytes >= 1e9 else ("MB", 1e6)
    return f"{n_bytes / scale:g} {unit}"


def _svg(figure: Figure) -> str:
    stream = StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable}, {colour})")
    return text


def _png(figure: Figure) -> bytes:
    stream = BytesIO()
    figure.patch.set_visible(True)
    figure.savefig(
        stream, format="png", dpi=_PNG_DPI, facecolor="white", metadata={"Software": None}
    )
    return stream.getvalue()
