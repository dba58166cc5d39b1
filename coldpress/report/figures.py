"""The report's two figures, as SVG that follows the page into the dark.

Colours go in as fixed marks and leave as CSS variables with the light colour as fallback, so that a
figure works alone and inside the page. Equal rows give equal bytes.
"""

from collections.abc import Callable, Sequence
from io import StringIO
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

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
    "file": ("#cc79a7", "^"),
    "base": ("#222222", "*"),
}
_INK, _MUTED, _GRID = "#222222", "#6b6b6a", "#dededd"
_VARIABLES = {
    _INK: "--ink",
    _MUTED: "--muted",
    _GRID: "--grid",
    **{colour: f"--{name}" for name, (colour, _) in _SERIES.items() if name != "base"},
}
_CHANCE = 0.25
_SMALLEST_KL = 1e-7
_TICKS = (1, 1.5, 2, 3, 4, 6, 8)  # of each decade of bytes, far enough apart on a log axis


def accuracy(rows: Sequence[Row]) -> str | None:
    """Accuracy against size, a series per method, with the base's and the chance line."""
    shown = [row for row in rows if row.accuracy is not None]
    if not shown:
        return None
    with mpl.rc_context(_SETTINGS):
        figure, axes = _figure("questions answered right")
        base = next((row for row in shown if row.is_base), None)
        if base is not None and base.accuracy is not None:
            _level(axes, 100 * base.accuracy, f"{base.name} {words.percent(base.accuracy)}")
        _level(axes, 100 * _CHANCE, "chance 25 %")
        lowest = min(100 * (row.accuracy or 0) for row in shown)
        axes.set_ylim(min(20.0, lowest - 5), 104)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} %"))
        _series(axes, shown, lambda row: 100 * (row.accuracy or 0))
        _sizes(axes, shown)
        place(axes, _labels(shown, lambda row: 100 * (row.accuracy or 0)))
        return _svg(figure)


def divergence(rows: Sequence[Row]) -> str | None:
    """KL divergence against size, log scales, with the line of what nothing smaller beats."""
    shown = [row for row in rows if row.kl_mean is not None and not row.is_base]
    if not shown:
        return None
    with mpl.rc_context(_SETTINGS):
        figure, axes = _figure("KL divergence from the base, nats per token")
        axes.set_yscale("log")
        front = pareto([(row.size_bytes, _kl(row)) for row in shown])
        line = [row for row, best in zip(shown, front, strict=True) if best]
        xs, ys = [row.size_bytes for row in line], [_kl(row) for row in line]
        axes.plot(xs, ys, color=_MUTED, linewidth=5, alpha=0.25, zorder=1, label="Pareto line")
        _series(axes, shown, _kl)
        _sizes(axes, shown)
        axes.margins(y=0.12)
        place(axes, _labels(shown, _kl))
        return _svg(figure)


def _kl(row: Row) -> float:
    return max(row.kl_mean or 0.0, _SMALLEST_KL)


def _labels(rows: Sequence[Row], y: Callable[[Row], float]) -> list[Label]:
    return [
        Label(row.size_bytes, y(row), row.type, _SERIES[row.method][0])
        for row in rows
        if not row.is_base
    ]


def _figure(y_label: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(7.2, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_ylabel(y_label, color=_INK)
    axes.set_xlabel("file size", color=_INK)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_MUTED, length=0)
    for spine in axes.spines.values():
        spine.set_color(_GRID)
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    return figure, axes


def _series(axes: Any, rows: Sequence[Row], y: Callable[[Row], float]) -> None:
    for name, (colour, marker) in _SERIES.items():
        mine = [row for row in rows if ("base" if row.is_base else row.method) == name]
        if not mine:
            continue
        xs, ys = [row.size_bytes for row in mine], [y(row) for row in mine]
        line = "-" if name in {"plain", "imatrix", "compensated", "budget"} else ""
        size = 11 if marker == "*" else 7
        axes.plot(
            xs, ys, line + marker, color=colour, markersize=size, linewidth=1.2, zorder=3,
            label=words.method(name),
        )  # fmt: skip
    axes.legend(frameon=False, labelcolor=_INK, loc="best", fontsize=9)


def _level(axes: Any, value: float, text: str) -> None:
    axes.axhline(value, color=_MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.annotate(
        text, (0, value), xycoords=("axes fraction", "data"), xytext=(4, 4),
        textcoords="offset points", ha="left", fontsize=9, color=_MUTED,
    )  # fmt: skip


def _sizes(axes: Any, rows: Sequence[Row]) -> None:
    """A log axis of file sizes with a margin for the labels."""
    sizes = [row.size_bytes for row in rows]
    axes.set_xscale("log")
    axes.set_xlim(min(sizes) / 1.12, max(sizes) * 1.18)
    axes.xaxis.set_major_locator(LogLocator(subs=_TICKS))
    axes.xaxis.set_major_formatter(FuncFormatter(_tick))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()


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
