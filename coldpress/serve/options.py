"""What an engine may be told."""

from dataclasses import dataclass
from pathlib import Path

from coldpress.errors import UsageError
from coldpress.serve.load import loader
from coldpress.serve.speculation import SPECULATE, Speculate

DEFAULT_CONTEXT = 4096
_BOUNDS = {"context": (0, 1 << 24), "parallel": (1, 64), "threads": (0, 512), "queue": (0, 4096)}


@dataclass(frozen=True)
class EngineOptions:
    """Limits of the engine; 0 chooses a value from the model or the machine."""

    context: int = 0
    """Tokens that a prompt and its answer may have together; 0: the model's, at most 4096."""
    parallel: int = 4
    """Sequences decoded together."""
    threads: int = 0
    queue: int = 64
    """Requests that may wait while all sequences are taken."""
    speculate: Speculate = "off"
    """How the next tokens of an answer that runs alone are guessed, where a request does not say."""
    draft: Path | None = None
    """A smaller model of the same vocabulary, which guesses."""
    load: loader.Tier = "auto"
    """How a local file is loaded."""
    verify: bool = False
    """Prove every chunk of a local checkpoint before the first answer; a remote one always is."""

    def __post_init__(self) -> None:
        for name, (low, high) in _BOUNDS.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise UsageError(f"{name} is {value}", f"choose a number from {low} to {high}")
        if self.load not in loader.TIERS:
            raise UsageError(f"no way to load {self.load!r}", ", ".join(loader.TIERS))
        if self.speculate not in SPECULATE:
            raise UsageError(f"no way to speculate {self.speculate!r}", ", ".join(SPECULATE))
        if self.speculate == "draft" and self.draft is None:
            raise UsageError("there is no model that guesses", "give one with --draft")
