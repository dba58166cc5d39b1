"""A changed model written as a Hugging Face folder in the original's type."""

from pathlib import Path
from typing import Any

from coldpress.distill.students import stored_type

NOT_COPIED = ("config.json", "generation_config.json", "manifest.json", "prune.json")


def count(model: Any) -> int:
    """Weights, shared ones once."""
    return sum(each.numel() for each in model.parameters())


def save(model: Any, original: Path, folder: Path) -> None:
    """Write weights and config; the model is in the original's type afterwards."""
    model.to(stored_type(original)).save_pretrained(folder)
