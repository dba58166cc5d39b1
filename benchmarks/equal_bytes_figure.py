"""KL against bits per weight, every family of files, as SVG that follows the page into the dark."""

from io import StringIO
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MultipleLocator

from coldpress.report.labels import Label, place

_SETTINGS: Any = {
    "svg.hashsalt": "coldpress",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
# Okabe and Ito's palette, told apart by the colour-blind; the marker says the same again.
_FAMILIES = {
    "ours": ("#d55e00", "s", "coldpress"),
    "preset imatrix": ("#0072b2", "o", "llama.cpp preset, imatrix"),
    "pure imatrix": ("#009e73", "D", "one type, imatrix"),
    "preset": ("#56b4e9", "v", "llama.cpp preset"),
    "gptq": ("#cc79a7", "^", "GPTQ, its true bytes"),
}
_LABELLED = ("preset imatrix", "gptq")
_INK, _MUTED, _GRID = "#222222", "#6b6b6a", "#dededd"
_VARIABLES = {_INK: "--ink", _MUTED: "--muted", _GRID: "--grid"}
_RANGE_BPW = (2.0, 7.0)
_WORST_KL = 3.0


def figure(model: dict[str, Any]) -> str:
    """The figure of one model of ``reports/equal_bytes.json``; files off its ranges are left out."""
    low, high = _RANGE_BPW
    shown = [
        row
        for row in model["files"]
        if low <= row["file_bits_per_weight"] <= high and row["kl"] <= _WORST_KL
    ]
    with mpl.rc_context(_SETTINGS):
        drawn, axes = _axes(model)
        for family, (colour, marker, label) in _FAMILIES.items():
            mine = [row for row in shown if row["family"] == family]
            xs, ys = [row["file_bits_per_weight"] for row in mine], [row["kl"] for row in mine]
            line = "-" if family == "ours" else ""
            axes.plot(
                xs, ys, line + marker, color=colour, markersize=5.5, linewidth=1.4, zorder=3,
                label=label if mine else None,
            )  # fmt: skip
        axes.legend(frameon=False, labelcolor=_INK, loc="best", fontsize=9)
        named = [row for row in shown if row["family"] in _LABELLED]
        place(axes, [_label(row) for row in named])
        return _svg(drawn)


def _label(row: dict[str, Any]) -> Label:
    colour = _FAMILIES[row["family"]][0]
    return Label(row["file_bits_per_weight"], row["kl"], row["name"], colour)


def _axes(model: dict[str, Any]) -> tuple[Figure, Any]:
    drawn = Figure(figsize=(7.2, 5.2), layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.add_subplot()
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylabel("KL divergence from bf16, nats per token", color=_INK)
    weights = f"{model['n_weights'] / 1e6:.1f} M weights"
    axes.set_xlabel(f"bits per weight, the whole file ({weights})", color=_INK)
    axes.xaxis.set_major_locator(MultipleLocator(0.5))
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_MUTED, length=0)
    for spine in axes.spines.values():
        spine.set_color(_GRID)
    drawn.patch.set_visible(False)
    axes.patch.set_visible(False)
    return drawn, axes


def _svg(drawn: Figure) -> str:
    stream = StringIO()
    drawn.savefig(stream, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable}, {colour})")
    return text
