"""Numbers as people read them: sizes in decimal units, shares in percent, a dash for nothing."""

NOTHING = "–"
_NBSP = "\u00a0"
_METHODS = {
    "base": "base",
    "plain": "one type",
    "imatrix": "one type + imatrix",
    "preset": "llama.cpp preset",
    "compensated": "error feedback",
    "budget": "searched for a budget",
    "file": "file",
}


def size(n_bytes: int) -> str:
    """Bytes in MB or GB, three digits: 4.76 MB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= scale:
            return f"{_three(n_bytes / scale)}{_NBSP}{unit}"
    return f"{n_bytes}{_NBSP}B"


def percent(share: float | None) -> str:
    """A share of one in percent, one decimal."""
    return NOTHING if share is None else f"{100 * share:.1f}{_NBSP}%"


def points(share: float | None) -> str:
    """A difference of shares in points, with a sign: −0.4."""
    return NOTHING if share is None else f"{100 * share:+.1f}".replace("-", "−")


def number(value: float | None, unit: str = "") -> str:
    """Three significant digits."""
    return NOTHING if value is None else _three(value) + (f"{_NBSP}{unit}" if unit else "")


def kl(nats: float | None) -> str:
    """A divergence, decimal as long as that is readable."""
    if nats is None:
        return NOTHING
    return f"{nats:.4f}" if nats >= 0.0005 or nats == 0 else f"{nats:.1e}".replace("-", "−")


def method(name: str) -> str:
    """What a method is called on the page."""
    return _METHODS.get(name, name)


def _three(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
