"""From a budget to a type per tensor: sensitivities measured once, an allocation, refined on the true KL."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from coldpress.quantize import problem, refine, sensitivity
from coldpress.quantize.judge import Judge, Ledger
from coldpress.quantize.layout import Metadata
from coldpress.quantize.types import TYPES, GgmlType

if TYPE_CHECKING:
    from coldpress.calibrate.statistics import Statistics
    from coldpress.quantize.bank import Bank
    from coldpress.quantize.network import Network

Tokens = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Found:
    """The plan and its KL on the probe tokens, before and after refining.

    ``sensitivities`` are the KL of each tensor alone.
    """

    types: dict[str, GgmlType]
    sensitivities: dict[str, float]
    allocated_kl_nats: float
    kl_nats: float


def probes(statistics: "Statistics", tokens: int) -> Tokens:
    """Held-out sequences first, then others, about so many tokens: what plans are judged on."""
    held = list(statistics.held)
    others = [index for index in range(len(statistics.tokens)) if index not in statistics.held]
    wanted = max(1, tokens // statistics.tokens.shape[1])
    return statistics.tokens[(held + others)[:wanted]]


def search(
    reader: Any,
    metadata: Metadata,
    bank: "Bank",
    network: "Network",
    statistics: "Statistics",
    file_bytes: int,
    *,
    probe_tokens: int,
    tries: int,
    min_tok_s: float | None = None,
    speeds: Mapping[str, float] | None = None,
) -> Found:
    """The plan of the least KL in a file of at most ``file_bytes``.

    Measured figures are kept in the bank's folder and reused by every later budget.

    Raises:
        UsageError: the budget cannot be met.
    """
    tokens = probes(statistics, probe_tokens)
    network.measure_on(tokens)
    about = f"{bank.folder.name}:{tokens.shape}"
    judge = Judge(bank, network, Ledger(bank.folder / "kl.jsonl"), about)
    measured = sensitivity.measure(sensitivity.candidates(reader), judge)
    choices = problem.problem(reader, metadata, measured, speeds)
    limit = None if min_tok_s is None else 1 / min_tok_s
    refined = refine.refine(choices, judge, file_bytes, limit, tries)
    return Found(
        types={name: TYPES[choice.type] for name, choice in refined.plan.items()},
        sensitivities={
            name: measured[name][choice.type].kl_nats for name, choice in refined.plan.items()
        },
        allocated_kl_nats=refined.first_kl_nats,
        kl_nats=refined.kl_nats,
    )
