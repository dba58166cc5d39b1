"""How fast PyTorch gets 1 GB of tensors from a cold disk: our reader, ``torch.load``, safetensors.

``python -m benchmarks.state_dict`` prints seconds per way and the ratios; ``benchmarks/load.py`` calls
``measure``. Every run is of a fresh process, takes the file out of the page cache first, and ends when every
byte is in memory that belongs to a tensor; the ways take turns.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from coldpress.evaluate.page_cache import drop

WAYS = ("torch.load", "safetensors", "coldpress", "coldpress, unverified")
_TENSORS, _SIDE = 30, 4096
_MOST_CACHED = 0.01


def measure(scratch: Path, *, rounds: int = 7) -> dict[str, Any]:
    """Seconds per way with its spread, and how many times faster than ``torch.load`` each is."""
    _write(scratch)
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            argv = [sys.executable, "-m", "benchmarks.state_dict", str(scratch), way]
            done = subprocess.run(argv, capture_output=True, text=True, check=True)
            taken[way].append(float(done.stdout))
    middle = {way: median(seconds) for way, seconds in taken.items()}
    return {
        "size_bytes": (scratch / "model.safetensors").stat().st_size,
        "seconds": {
            way: {"median": middle[way], "min": min(some), "max": max(some), "n": rounds}
            for way, some in taken.items()
        },
        "speedup_vs_torch_load": {
            way: round(middle["torch.load"] / seconds, 3) for way, seconds in middle.items()
        },
    }


def _write(folder: Path) -> None:
    """The same bf16 tensors, 1 GB of them, as torch.save and as safetensors write them."""
    import torch
    from safetensors.torch import save_file

    from coldpress.checkpoint.safetensors_folder import index_folder

    random = torch.Generator().manual_seed(0)
    tensors = {
        f"layer.{at}": torch.randn(_SIDE, _SIDE, generator=random).to(torch.bfloat16)
        for at in range(_TENSORS)
    }
    torch.save(tensors, folder / "model.pt")
    save_file(tensors, folder / "model.safetensors")
    index_folder(folder)
    os.sync()


def _read(folder: Path, way: str) -> float:
    """Seconds that one cold read takes; imports are not part of it."""
    import torch
    from safetensors.torch import load_file

    from coldpress.checkpoint.state_dict import load_state_dict

    for path in folder.iterdir():
        if drop(path) > _MOST_CACHED:
            sys.exit(f"{path} stays in the page cache: no cold read can be measured here")
    began = time.perf_counter()
    match way:
        case "torch.load":
            found = torch.load(folder / "model.pt", weights_only=True)
        case "safetensors":
            # It maps the file: the copies are what makes the tensors one's own.
            mapped = load_file(folder / "model.safetensors")
            found = {name: tensor.clone() for name, tensor in mapped.items()}
        case _:
            found = load_state_dict(folder, verify=way == "coldpress")
    seconds = time.perf_counter() - began
    assert len(found) == _TENSORS
    return seconds


def main() -> None:
    """One read in this process, or all of them in others."""
    if len(sys.argv) > 1:
        print(_read(Path(sys.argv[1]), sys.argv[2]))
        return
    with tempfile.TemporaryDirectory(dir=Path.home() / ".cache") as scratch:
        print(json.dumps(measure(Path(scratch)), indent=1))


if __name__ == "__main__":
    main()
