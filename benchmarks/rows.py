"""One measured file, and how two are compared: arithmetic alone, no program is run here."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

SPLIT_BPW = 3.2
SCOPE_BPW = (2.29, 6.01)


@dataclass(frozen=True)
class Row:
    """A file's size and what it lost; bits are the tensors' bytes, or the file's, over all weights.

    ``kl``, its standard error, median and 99th percentile are llama-perplexity's, in nats per token;
    ``own_kl`` and ``accuracy`` our evaluator's, None where it was not asked. ``types``: shares of weights;
    ``file``: the GGUF that was judged, in the model's folder.
    """

    family: str
    name: str
    file: str
    size_bytes: int
    bits_per_weight: float
    file_bits_per_weight: float
    types: dict[str, float]
    kl: float
    kl_stderr: float
    kl_median: float
    kl_p99: float
    perplexity: float
    perplexity_ratio: float
    same_top1: float
    own_kl: float | None = None
    accuracy: float | None = None


def rival(budget_bytes: int, rows: Iterable[Row], families: Sequence[str]) -> Row | None:
    """The best file that a user of llama.cpp has for this many bytes, rounded up in his favour.

    That is the lowest KL among all files up to the smallest one of at least ``budget_bytes``: the
    next larger file, or a smaller one that is better still. None when every file is smaller.
    """
    known = [row for row in rows if row.family in families]
    larger = [row.size_bytes for row in known if row.size_bytes >= budget_bytes]
    if not larger:
        return None
    return min((row for row in known if row.size_bytes <= min(larger)), key=lambda row: row.kl)


def versus(budget: str, budget_bytes: int, ours: Row, rows: Sequence[Row]) -> dict[str, Any]:
    """One budget: our file, each kind of rival, and the quotients of their KL."""
    found = {
        "preset": rival(budget_bytes, rows, ("preset imatrix",)),
        "pure": rival(budget_bytes, rows, ("preset imatrix", "pure imatrix")),
        "gptq": next((r for r in rows if (r.family, r.size_bytes) == ("gptq", budget_bytes)), None),
    }
    return {
        "budget": budget,
        "budget_bytes": budget_bytes,
        "bits_per_weight": ours.bits_per_weight,
        "ours": _figures(ours),
        **{kind: other and _figures(other) for kind, other in found.items()},
        **{f"kl_ratio_{kind}": other and ours.kl / other.kl for kind, other in found.items()},
    }


def _figures(row: Row) -> dict[str, Any]:
    wanted = ("name", "family", "file", "size_bytes", "bits_per_weight", "kl", "kl_stderr")
    return {name: getattr(row, name) for name in wanted}


def in_scope(budgets: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The budgets from 2.3 to 6 bits per weight."""
    low, high = SCOPE_BPW
    return [each for each in budgets if low <= each["bits_per_weight"] <= high]


def headline(budgets: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """The worst and the median quotient over the budgets in scope."""
    inside = in_scope(budgets)
    preset = [each for each in inside if each["kl_ratio_preset"] is not None]
    above = [e["kl_ratio_preset"] for e in preset if e["bits_per_weight"] >= SPLIT_BPW]
    below = [e["kl_ratio_preset"] for e in preset if e["bits_per_weight"] < SPLIT_BPW]
    gptq = [e["kl_ratio_gptq"] for e in inside if e["kl_ratio_gptq"] is not None]
    return {
        "worst_kl_ratio_above_3_2_bpw": max(above, default=None),
        "worst_kl_ratio_below_3_2_bpw": max(below, default=None),
        "median_kl_ratio": median(above + below) if preset else None,
        "worst_kl_ratio_vs_gptq": max(gptq, default=None),
    }
