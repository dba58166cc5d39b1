"""What a GPTQ checkpoint is written with. Imports nothing heavy: the command line reads it."""

from dataclasses import dataclass

from coldpress.errors import UsageError

BITS = (2, 3, 4, 8)
REPLACED = (
    "auto-gptq is archived and cannot be imported beside transformers 5; "
    "coldpress's own GPTQ writes the same format"
)
_ALIASES = ("auto-gptq", "auto_gptq", "autogptq")


@dataclass(frozen=True)
class GptqOptions:
    """How to round.

    Args:
        bits: bits per code: 2, 3, 4 or 8.
        group_size: inputs that share a scale and a zero point; a last, shorter group is allowed.
        act_order: round the inputs with the largest second moment first (``desc_act``).
        damp: added to the diagonal of the second moments, as a share of its mean.
        search: search each group's scale; without, it spans the weights from min to max as in the paper.
    """

    bits: int = 4
    group_size: int = 128
    act_order: bool = True
    damp: float = 0.01
    search: bool = True

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise UsageError(f"GPTQ has no {self.bits} bits", "one of: 2, 3, 4, 8")
        if self.group_size < 1:
            raise UsageError(f"group_size {self.group_size} holds no weight", "128 is usual")
        if not 0 < self.damp < 1:  # Also true for NaN.
            raise UsageError(f"damp {self.damp} is not between 0 and 1", "0.01 is usual")


def is_auto_gptq(method: str) -> bool:
    """Whether a ``--method`` asks for the library that ``REPLACED`` speaks of."""
    return method.lower() in _ALIASES
