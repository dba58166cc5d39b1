"""Runs under the peer's own interpreter, beside gptqmodel; imports nothing of coldpress.

    gptqmodel_inside.py quantize MODEL OUT TOKENS.NPY BITS GROUP_SIZE THREADS
    gptqmodel_inside.py logits FOLDER CHECKPOINT...

The last line on stdout is the answer in JSON; gptqmodel prints before it.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

TOKENS = list(range(3, 67))


def quantize(
    model: str, out: str, tokens: str, bits: str, group_size: str, threads: str
) -> dict[str, Any]:
    """Quantize a model folder as gptqmodel does by default, in act-order, and save it."""
    torch.set_num_threads(int(threads))
    from gptqmodel import GPTQModel, QuantizeConfig

    settings = {"bits": int(bits), "group_size": int(group_size), "desc_act": True}
    before = _peak_bytes()
    loaded = GPTQModel.load(model, QuantizeConfig(**settings, act_group_aware=False), device="cpu")
    texts = [
        {"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in np.load(tokens)
    ]
    began, worked = time.perf_counter(), time.process_time()
    loaded.quantize(texts, batch_size=1)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - worked
    loaded.save(out)
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_rss_bytes": _peak_bytes(),
        "imported_rss_bytes": before,
    }


def logits(folder: str, *checkpoints: str) -> dict[str, Any]:
    """Save transformers' logits of each checkpoint after ``TOKENS`` as FOLDER/NAME.npy, (T, vocabulary)."""
    from transformers import AutoModelForCausalLM

    kernels = {}
    for path in map(Path, checkpoints):
        model = AutoModelForCausalLM.from_pretrained(path, device_map="cpu", dtype=torch.float16)
        with torch.inference_mode():
            np.save(
                Path(folder) / f"{path.name}.npy", model(torch.tensor([TOKENS])).logits[0].float()
            )
        kernels[path.name] = type(model.model.layers[0].mlp.up_proj).__name__
    return {"tokens": TOKENS, "kernels": kernels}


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    answer = {"quantize": quantize, "logits": logits}[sys.argv[1]](*sys.argv[2:])
    print("\n" + json.dumps(answer))
