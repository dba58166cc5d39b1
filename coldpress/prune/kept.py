"""What a pruning did, for ``prune.json``."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Kept:
    """``what`` in words; ``kl_nats`` from the model on the text; ``details`` per way of pruning.

    ``n_zeros`` of the checkpoint's weights are zeros that no GGUF will hold.
    """

    what: str
    kl_nats: float
    details: dict[str, Any] = field(default_factory=dict)
    n_zeros: int = 0
