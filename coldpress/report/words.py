"""Numbers as people read them: sizes in decimal units, shares in percent, a dash for nothing."""

import math

from coldpress.cost import Cost
from coldpress.report.categories import Share

NOTHING = "–"
NBSP = "\u00a0"
_METHODS = {
    "base": "base",
    "plain": "one type",
    "imatrix": "one type + imatrix",
    "preset": "llama.cpp preset",
    "compensated": "error feedback",
    "budget": "searched for a budget",
    "taught": "searched, then taught",
    "student": "fewer weights",
    "file": "file",
}
_PLATFORMS = {"lambda-x86": "Lambda x86", "lambda-arm": "Lambda arm", "cloudrun": "Cloud Run"}


def size(n_bytes: int) -> str:
    """Bytes in MB or GB, three digits: 4.76 MB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= scale:
            return f"{_three(n_bytes / scale)}{NBSP}{unit}"
    return f"{n_bytes}{NBSP}B"


def percent(share: float | None) -> str:
    """A share of one in percent, one decimal."""
    return NOTHING if share is None else f"{100 * share:.1f}{NBSP}%"


def points(share: float | None) -> str:
    """A difference of shares in points, with a sign: −0.4."""
    if share is None:
        return NOTHING
    rounded = round(100 * share, 1)
    return f"{rounded:+.1f}".replace("-", "−") if rounded else "0.0"


def number(value: float | None, unit: str = "") -> str:
    """Three significant digits."""
    return NOTHING if value is None else _three(value) + (f"{NBSP}{unit}" if unit else "")


def kl(nats: float | None) -> str:
    """A divergence, decimal as long as that is readable."""
    if nats is None:
        return NOTHING
    return f"{nats:.4f}" if nats >= 0.0005 or nats == 0 else f"{nats:.1e}".replace("-", "−")


def figure(value: float | None) -> str:
    """A metric of whatever unit, to four digits."""
    return NOTHING if value is None else f"{value:.4g}".replace("-", "−")


def p(value: float | None) -> str:
    """A test's p, two decimals, or how small it is."""
    if value is None:
        return NOTHING
    return f"{value:.2f}" if value >= 0.095 else f"{value:.3f}" if value >= 0.001 else "< 0.001"


def usd(value: float | None) -> str:
    """US dollars, three significant digits however small: $0.00674."""
    if value is None:
        return NOTHING
    if value == 0:
        return "$0"
    decimals = max(2 - math.floor(math.log10(value)), 0)
    return f"${value:,.{decimals}f}"


def seconds(value: float | None, unit: str = "") -> str:
    """Seconds to the millisecond: starts of small files differ in those."""
    if value is None:
        return NOTHING
    return (f"{value:.3f}" if value < 10 else _three(value)) + (f"{NBSP}{unit}" if unit else "")


def instance(cost: Cost) -> str:
    """The size that is paid for: 3,538 MB, 2.0 vCPU."""
    return f"{cost.memory_mib:,}{NBSP}MB, {cost.vcpu:.3g}{NBSP}vCPU"


def interval(share: Share) -> str:
    """A share's interval in percent: 59.8–64.3."""
    return f"{100 * share.low:.1f}–{100 * share.high:.1f}"


def platform(name: str) -> str:
    """What a platform is called on the page."""
    return _PLATFORMS.get(name, name)


def method(name: str) -> str:
    """What a method is called on the page."""
    return _METHODS.get(name, name)


def _three(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
