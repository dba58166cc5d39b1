"""The state of a training run on disk, complete by rename, from which it goes on exactly.

``step-N/`` is a model folder that transformers loads, with Adam's moments (``optimizer.safetensors``), the
best weights so far (``best.safetensors``) and the history (``state.json``) beside it. No pickle.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from coldpress.gptq.stream import copy_beside

_OPTIMIZER, _BEST, _STATE = "optimizer.safetensors", "best.safetensors", "state.json"
_PREFIX = "step-"


@dataclass(frozen=True)
class Step:
    """Mean divergence on the taught text since the last evaluation (none at the start) and on held-out text."""

    step: int
    tokens: int
    train_kl_nats: float | None
    held_kl_nats: float


@dataclass
class State:
    """How far a run is; ``best`` are the weights with the lowest divergence on held-out text."""

    step: int = 0
    history: list[Step] = field(default_factory=list)
    best_step: int = 0
    best_kl_nats: float = float("inf")
    best: dict[str, Tensor] = field(default_factory=dict)


def last(folder: Path) -> Path | None:
    """The newest complete state below a run's folder."""
    found = sorted(each for each in folder.glob(f"{_PREFIX}*") if (each / _STATE).is_file())
    return found[-1] if found else None


def write(folder: Path, model: Any, optimizer: Any, state: State, beside: Path) -> Path:
    """Write a state below a run's folder and remove the one before it.

    Args:
        beside: the folder whose tokenizer goes beside the weights.
    """
    previous = last(folder)
    path = folder / f"{_PREFIX}{state.step:08d}"
    partial = folder / "state.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    model.save_pretrained(partial)
    copy_beside(beside, partial, leave=["config.json", "generation_config.json", "manifest.json"])
    save_file(_moments(model, optimizer), partial / _OPTIMIZER)
    if previous is not None and _read(previous)["best_step"] == state.best_step:
        os.link(previous / _BEST, partial / _BEST)
    else:
        save_file(state.best, partial / _BEST)
    text = {
        "step": state.step,
        "history": [asdict(each) for each in state.history],
        "best_step": state.best_step,
        "best_kl_nats": state.best_kl_nats,
    }
    (partial / _STATE).write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(path, ignore_errors=True)
    partial.rename(path)
    if previous is not None and previous != path:
        shutil.rmtree(previous)
    return path


def read(path: Path, model: Any, optimizer: Any) -> State:
    """Go on from a state: fill the model and the optimizer."""
    weights = load_file(path / "model.safetensors")
    missing, unknown = model.load_state_dict(weights, strict=False)
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    if unknown or set(missing) - tied:
        raise ValueError(f"{path} is of another model")  # Its folder's name says whose it is.
    model.tie_weights()
    moments = load_file(path / _OPTIMIZER)
    for name, parameter in model.named_parameters():
        optimizer.state[parameter] = {
            key: moments[f"{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")
        }
    known = _read(path)
    history = [Step(**each) for each in known["history"]]
    best = load_file(path / _BEST)
    return State(known["step"], history, known["best_step"], known["best_kl_nats"], best)


def _moments(model: Any, optimizer: Any) -> dict[str, Tensor]:
    """Adam's state by the parameter's name."""
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / _STATE).read_text(encoding="utf-8"))
    return found
