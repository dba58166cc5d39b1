"""A cold start as a picture in text: what ran when, and what ran at the same time."""

from collections.abc import Mapping

_WIDTH = 48


def draw(timeline: Mapping[str, tuple[float, float]]) -> str:
    """One line per span, in the order of their beginnings; all share one axis from 0 to the last end."""
    if not timeline:
        return ""
    end = max(ended for _, ended in timeline.values())
    names = max(map(len, timeline))
    ordered = sorted(timeline.items(), key=lambda item: item[1])
    return "\n".join(
        f"  {name:<{names}} |{_bar(began, ended, end)}| {began:6.2f} – {ended:.2f} s"
        for name, (began, ended) in ordered
    )


def _bar(began: float, ended: float, last: float) -> str:
    scale = _WIDTH / last if last else 0
    first = min(int(began * scale), _WIDTH - 1)
    count = max(1, round(ended * scale) - first)
    return (" " * first + "█" * count).ljust(_WIDTH)[:_WIDTH]
