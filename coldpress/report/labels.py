"""Put text beside points so that no two labels overlap, and none covers a point or a line."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import cos, hypot, radians, sin
from typing import Any

import numpy as np
from matplotlib.transforms import Bbox

_FONT_SIZE = 8.5
_CLEAR = 5.5  # points kept free around a marker
_SAME = 16  # points; nearer than this, two points of one name share a label
_LINE_STEP = 4  # points between the samples of a line
_DISTANCES = (9, 15, 22, 30, 40, 52)
_ANGLES = (45, 135, 315, 225, 90, 270, 0, 180, 20, 160, 70, 110, 340, 200)


@dataclass(frozen=True)
class Label:
    """The text for the point (x, y)."""

    x: float
    y: float
    text: str
    colour: str


def place(axes: Any, labels: Sequence[Label]) -> None:
    """Label points: near if there is room, else further away with a thin line to the point."""
    axes.figure.draw_without_rendering()
    pixels = axes.figure.dpi / 72
    spots = {label: axes.transData.transform((label.x, label.y)) for label in labels}
    taken = [_around(spot, _CLEAR * pixels) for spot in spots.values()]
    taken += [_around(spot, 1.0) for spot in _on_lines(axes, _LINE_STEP * pixels)]
    taken += [text.get_window_extent() for text in axes.texts]
    if (legend := axes.get_legend()) is not None:
        taken.append(legend.get_window_extent())
    inside = axes.get_window_extent()
    named: list[Label] = []
    for label, spot in spots.items():
        if any(
            other.text == label.text and hypot(*(spots[other] - spot)) < _SAME * pixels
            for other in named
        ):
            continue
        named.append(label)
        taken.append(_write(axes, label, inside, taken, pixels))


def _write(axes: Any, label: Label, inside: Bbox, taken: Sequence[Bbox], pixels: float) -> Bbox:
    """Write one label at its best place; the place is returned."""
    text = axes.annotate(
        label.text, (label.x, label.y), xytext=(0, 0), textcoords="offset points",
        fontsize=_FONT_SIZE, color=label.colour, ha="center", va="center", zorder=4,
    )  # fmt: skip
    offset, box = _best(text.get_window_extent(), inside, taken, pixels)
    text.set_position(offset)
    if hypot(*offset) > 2.5 * _DISTANCES[0] and abs(offset[1]) > _DISTANCES[1]:
        axes.annotate(
            "", (label.x, label.y), xytext=offset, textcoords="offset points", zorder=2,
            arrowprops={"arrowstyle": "-", "color": label.colour, "lw": 0.6, "alpha": 0.6,
                        "shrinkA": 5, "shrinkB": 4},
        )  # fmt: skip
    return box


def _on_lines(axes: Any, step: float) -> Iterator[Any]:
    """Points along every drawn line, ``step`` pixels apart."""
    for line in axes.get_lines():
        if line.get_linestyle() in {"None", ""}:
            continue
        corners = line.get_transform().transform(line.get_xydata())
        for a, b in pairwise(corners):
            for share in np.linspace(0, 1, max(2, int(hypot(*(b - a)) / step))):
                yield a + share * (b - a)


def _best(
    box: Bbox, inside: Bbox, taken: Sequence[Bbox], pixels: float
) -> tuple[tuple[float, float], Bbox]:
    """The first candidate that is free, else the one that covers least."""

    def cost(candidate: tuple[tuple[float, float], Bbox]) -> float:
        _, spot = candidate
        outside = spot.width * spot.height - _overlap(spot, inside)
        return outside + sum(_overlap(spot, other) for other in taken)

    candidates = list(_candidates(box, pixels))
    free = (candidate for candidate in candidates if cost(candidate) < 1e-6)
    return next(free, None) or min(candidates, key=cost)


def _candidates(box: Bbox, pixels: float) -> Iterator[tuple[tuple[float, float], Bbox]]:
    for distance in _DISTANCES:
        for angle in _ANGLES:
            across, up = cos(radians(angle)), sin(radians(angle))
            dx = across * (distance + box.width / pixels / 2 * abs(across))
            dy = up * (distance + box.height / pixels / 2 * abs(up))
            yield (dx, dy), box.translated(dx * pixels, dy * pixels)


def _overlap(a: Bbox, b: Bbox) -> float:
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return float(width * height) if width > 0 and height > 0 else 0.0


def _around(point: Sequence[float], radius: float) -> Bbox:
    x, y = point
    return Bbox.from_extents(x - radius, y - radius, x + radius, y + radius)
