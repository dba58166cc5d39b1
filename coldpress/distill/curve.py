"""A run's learning curve as a figure: divergence on taught and on held-out text against tokens."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from coldpress.distill.saved import Step

_SETTINGS = {
    "svg.hashsalt": "coldpress",
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_TAUGHT, _HELD = "#0072b2", "#d55e00"


def draw(path: Path, history: Sequence[Step], best_step: int) -> None:
    """Write the figure as SVG; equal histories give equal bytes."""
    with mpl.rc_context(_SETTINGS):  # type: ignore[arg-type]
        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        axes = figure.add_subplot()
        taught = [(each.tokens, each.train_kl_nats) for each in history if each.train_kl_nats]
        if taught:
            axes.plot(*zip(*taught, strict=True), color=_TAUGHT, label="taught text")
        held = [(each.tokens, each.held_kl_nats) for each in history]
        axes.plot(*zip(*held, strict=True), color=_HELD, label="held-out text")
        (best,) = (each for each in history if each.step == best_step)
        axes.plot(best.tokens, best.held_kl_nats, "o", color=_HELD)
        axes.annotate(
            f"kept: {best.held_kl_nats:.4f}",
            (best.tokens, best.held_kl_nats),
            textcoords="offset points",
            xytext=(-6, 8),
            ha="right",
        )
        axes.set(yscale="log", xlabel="tokens", ylabel="KL from the teacher, nats per token")
        axes.grid(axis="y", which="both", color="#dededd", linewidth=0.6)
        axes.legend(frameon=False)
        FigureCanvasAgg(figure)
        figure.savefig(path, format="svg", metadata={"Date": None})
