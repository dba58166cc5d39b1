"""One way to load a model, in a process of its own: ``python -m benchmarks.load_contenders NAME PATH``.

Prints one JSON line with CLOCK_MONOTONIC at its milestones, so that whoever started it can count from the
process's start. Nothing is imported that the way does not need.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CELLS = 4096
PROMPT = [128000, 5, 6, 7, 8, 9, 10, 11]
Marks = dict[str, Any]


def _prepare(model: Any) -> Any:
    from coldpress.serve.model import Context
    from coldpress.serve.threads import usable_cpus

    return Context(model, cells=CELLS, sequences=1, threads=usable_cpus())


def _first_token(model: Any, context: Any) -> int:
    row = context.add(PROMPT, 0, 0, wanted=True)
    context.decode()
    sampler = model.lib.llama_sampler_init_greedy()
    return int(context.sample(sampler, row))


def coldpress(tier: str) -> Callable[[str, Marks], None]:
    """Our loader; ``tier`` "auto" chooses."""

    def run(path: str, marks: Marks) -> None:
        from coldpress.serve.load.loader import open_model
        from coldpress.serve.load.place import locate
        from coldpress.serve.trace import Trace

        trace = Trace()
        marks["open"] = time.monotonic()
        model, context = open_model(locate(path), _prepare, trace, tier=tier)
        marks["loaded"] = time.monotonic()
        marks["token"] = _first_token(model, context)
        marks["first_token"] = time.monotonic()
        marks["timeline"] = trace.timeline

    return run


def llama_cpp(mode: str) -> Callable[[str, Marks], None]:
    """llama.cpp by one of its load modes, without repacking, as ours."""

    def run(path: str, marks: Marks) -> None:
        from coldpress import libllama
        from coldpress.serve.model import Model

        lib = libllama.load()
        params = lib.llama_model_default_params()
        params.load_mode = getattr(lib, f"LLAMA_LOAD_MODE_{mode}")
        params.use_extra_bufts = False
        gguf = Path(path) / "model.gguf"
        marks["open"] = time.monotonic()
        model = Model(lib, lib.llama_model_load_from_file(bytes(gguf), params), gguf)
        context = _prepare(model)
        marks["loaded"] = time.monotonic()
        marks["token"] = _first_token(model, context)
        marks["first_token"] = time.monotonic()

    return run


def vocabulary(path: str, marks: Marks) -> None:
    """What llama.cpp needs for header and vocabulary alone, in one process that has read them before."""
    from coldpress import libllama

    lib = libllama.load()
    params = lib.llama_model_default_params()
    params.vocab_only = True
    marks["open"] = time.monotonic()
    lib.llama_model_load_from_file(bytes(Path(path) / "model.gguf"), params)
    marks["loaded"] = time.monotonic()


def transformers(path: str, marks: Marks) -> None:
    """``from_pretrained`` of the bf16 original, and one greedy token."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    marks["open"] = time.monotonic()
    AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    marks["loaded"] = time.monotonic()
    with torch.inference_mode():
        logits = model(torch.tensor([PROMPT])).logits
    marks["token"] = int(logits[0, -1].argmax())
    marks["first_token"] = time.monotonic()


def torch_load(path: str, marks: Marks) -> None:
    """``torch.load`` of a state dict; every tensor's bytes are in memory at the end."""
    import torch

    marks["open"] = time.monotonic()
    _touch(torch.load(f"{path}/model.pt", weights_only=True).values())
    marks["loaded"] = time.monotonic()


def safetensors(path: str, marks: Marks) -> None:
    """``safetensors.torch.load_file``, every page touched: it maps lazily."""
    from safetensors.torch import load_file

    marks["open"] = time.monotonic()
    _touch(load_file(f"{path}/model.safetensors").values())
    marks["loaded"] = time.monotonic()


def runai(path: str, marks: Marks) -> None:
    """run:ai's model streamer with its default concurrency."""
    from runai_model_streamer import SafetensorsStreamer

    marks["open"] = time.monotonic()
    with SafetensorsStreamer() as streamer:
        streamer.stream_file(f"{path}/model.safetensors")
        _touch(tensor for _, tensor in streamer.get_tensors())
        marks["loaded"] = time.monotonic()


def fastsafetensors(path: str, marks: Marks) -> None:
    """fastsafetensors without GPUDirect, to the CPU."""
    from fastsafetensors import SafeTensorsFileLoader, SingleGroup

    marks["open"] = time.monotonic()
    loader = SafeTensorsFileLoader(SingleGroup(), "cpu", nogds=True)
    loader.add_filenames({0: [f"{path}/model.safetensors"]})
    buffers = loader.copy_files_to_device()
    _touch(buffers.get_tensor(name) for name in list(buffers.key_to_rank_lidx))
    marks["loaded"] = time.monotonic()


def coldpress_tensors(path: str, marks: Marks) -> None:
    """Our loader up to the moment where every tensor's bytes are mapped: as the readers above."""
    from coldpress import libllama
    from coldpress.serve.load.loader import open_model
    from coldpress.serve.load.place import locate
    from coldpress.serve.trace import Trace

    libllama.load()  # the readers above have imported torch before they begin
    marks["rss_before"] = dict(_memory_bytes())["VmRSS"]
    marks["open"] = time.monotonic()
    kept = open_model(locate(path), lambda _model: _Nothing(), Trace())
    marks["loaded"] = time.monotonic()

    marks |= _memory_bytes()  # while the model is there
    del kept


class _Nothing:
    def close(self) -> None:
        pass


def _touch(tensors: Any) -> None:
    """Read a byte of each page: whoever maps lazily must have read it by now."""
    for tensor in tensors:
        tensor.view(-1).view(_bytes())[::4096].sum()


def _bytes() -> Any:
    import torch

    return torch.uint8


CONTENDERS: dict[str, Callable[[str, Marks], None]] = {
    "coldpress": coldpress("auto"),
    "coldpress-page-cache": coldpress("page-cache"),
    "coldpress-memory": coldpress("memory"),
    "coldpress-tensors": coldpress_tensors,
    "llama.cpp-mmap": llama_cpp("MMAP"),
    "llama.cpp-read": llama_cpp("NONE"),
    "llama.cpp-direct": llama_cpp("DIRECT_IO"),
    "vocabulary": vocabulary,
    "transformers": transformers,
    "torch.load": torch_load,
    "safetensors": safetensors,
    "run:ai": runai,
    "fastsafetensors": fastsafetensors,
}


def _memory_bytes() -> Iterator[tuple[str, int]]:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("VmRSS", "RssAnon", "RssFile", "RssShmem"):
            yield name, int(value.split()[0]) * 1024


def main() -> None:
    """Run one way; the last line of standard output is its milestones."""
    name, path = sys.argv[1:]
    marks: Marks = {}
    CONTENDERS[name](path, marks)
    used = resource.getrusage(resource.RUSAGE_SELF)
    marks = {"cpu_s": used.ru_utime + used.ru_stime, **dict(_memory_bytes()), **marks}
    print(json.dumps(marks), flush=True)
    os._exit(0)  # what it takes to end is not what is measured


if __name__ == "__main__":
    main()
