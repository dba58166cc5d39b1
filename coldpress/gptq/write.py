"""Write a Hugging Face GPTQ checkpoint: the blocks' linear layers as codes, the rest as it was."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from coldpress import __version__
from coldpress.convert import checks
from coldpress.errors import CorruptModelError, InputError, UnsupportedModelError
from coldpress.gptq import pack
from coldpress.gptq.kernel import Prepared, Rounded, prepare, quantize_factored
from coldpress.gptq.layout import V1
from coldpress.gptq.options import GptqOptions
from coldpress.gptq.stream import Entry, Source, copy_beside
from coldpress.gptq.stream import write as write_safetensors
from coldpress.progress import note, task

if TYPE_CHECKING:
    from coldpress.calibrate.statistics import Statistics

_BLOCKS = "blk."
_WEIGHT = ".weight"


@dataclass(frozen=True)
class Written:
    """The checkpoint; ``raised_damp`` names the layers whose second moments asked for more, with how much.

    ``bits_per_weight`` counts every stored tensor's bits over every weight of the model.
    """

    path: str
    size_bytes: int
    bits_per_weight: float
    n_layers: int
    raised_damp: dict[str, float]


def write(model_dir: Path, statistics: "Statistics", out: Path, options: GptqOptions) -> Written:
    """Round a model's linear layers with GPTQ and write the checkpoint into the folder ``out``.

    Layers are rounded one input at a time: memory holds the layers that share one, and its second moment.

    Args:
        model_dir: the Hugging Face folder that ``statistics`` are of.

    Raises:
        UnsupportedModelError: experts, or a layer whose sides 32 does not divide.
        InputError: the statistics are another model's, or not positive.
        CorruptModelError: a weights file is damaged, or a weight is not finite.
    """
    config = checks.read_config(model_dir)
    checks.check_weights(model_dir)
    out.mkdir(parents=True, exist_ok=True)
    path, raised = out / "model.safetensors", dict[str, float]()
    with Source(model_dir) as source:
        layers = _layers(statistics, source.entries)
        entries = _entries(source.entries, layers, options)
        tensors = _tensors(source, statistics, layers, options, raised)
        write_safetensors(path, entries, tensors)
        n_weights = sum(_numel(entry) for entry in source.entries.values())
    config["quantization_config"] = _quantization_config(options)
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
    (out / "config.json").write_text(text + "\n", encoding="utf-8")
    copy_beside(model_dir, out, leave=["config.json"])
    if raised:
        note(f"  note: {len(raised)} layers needed a damp of up to {max(raised.values()):g}")
    stored = sum(entry.size_bytes for entry in entries.values())
    return Written(
        path=str(out),
        size_bytes=path.stat().st_size,
        bits_per_weight=8 * stored / n_weights,
        n_layers=len(layers),
        raised_damp=raised,
    )


def _layers(statistics: "Statistics", entries: Mapping[str, Entry]) -> dict[str, str]:
    """Parameter → GGUF name of every linear layer in the blocks."""
    layers = {}
    for name in statistics.names:
        for place in statistics.places(name) if name.startswith(_BLOCKS) else ():
            if place.expert is not None:
                raise UnsupportedModelError(
                    f"{place.parameter} stacks experts, for which GPTQ checkpoints have no place",
                    "quantize to GGUF",
                )
            layers[place.parameter] = name
    missing = [parameter for parameter in layers if parameter not in entries]
    if missing or not layers:
        raise InputError(
            f"the model has no {missing[0] if missing else 'block of these statistics'}",
            "give the folder that was calibrated",
        )
    for parameter, name in layers.items():
        _check_shape(parameter, entries[parameter], statistics.hessian(name).shape[-1])
    return layers


def _check_shape(parameter: str, entry: Entry, n_inputs: int) -> None:
    if len(entry.shape) != 2 or entry.shape[1] != n_inputs:
        raise InputError(
            f"{parameter} is {entry.shape}; the statistics are of {n_inputs} inputs",
            "give the folder that was calibrated",
        )
    if any(side % pack.LANES for side in entry.shape):
        raise UnsupportedModelError(
            f"{parameter} is {entry.shape}; GPTQ packs {pack.LANES} inputs and outputs at a time",
            "quantize to GGUF",
        )


def _entries(
    entries: Mapping[str, Entry], layers: Mapping[str, str], options: GptqOptions
) -> dict[str, Entry]:
    """What the file will hold."""
    written = {name: entry for name, entry in entries.items() if name not in layers}
    for parameter in layers:
        rows, inputs = entries[parameter].shape
        groups = -(-inputs // options.group_size)
        layer = parameter.removesuffix(_WEIGHT)
        written[f"{layer}.qweight"] = Entry("I32", (inputs * options.bits // 32, rows))
        written[f"{layer}.qzeros"] = Entry("I32", (groups, rows * options.bits // 32))
        written[f"{layer}.scales"] = Entry("F16", (groups, rows))
        written[f"{layer}.g_idx"] = Entry("I32", (inputs,))
    return written


def _tensors(
    source: Source,
    statistics: "Statistics",
    layers: Mapping[str, str],
    options: GptqOptions,
    raised: dict[str, float],
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the file; layers that share an input share its factor."""
    for name in source.entries:
        if name not in layers:
            yield name, source.tensor(name)
    shared: dict[str, list[str]] = {}
    for parameter, name in layers.items():
        shared.setdefault(statistics.input_of(name), []).append(parameter)
    n_weights = sum(_numel(source.entries[parameter]) for parameter in layers)
    with task("rounding", n_weights) as advance:
        for parameters in shared.values():
            prepared = _prepare(statistics, layers[parameters[0]], options)
            for parameter in parameters:
                W = _finite(source, parameter)
                rounded = quantize_factored(
                    W, prepared, options.bits, options.group_size, options.search
                )
                if rounded.damp > options.damp:
                    raised[parameter] = rounded.damp
                yield from _packed(parameter.removesuffix(_WEIGHT), rounded, options.bits)
                advance(W.numel())


def _prepare(statistics: "Statistics", name: str, options: GptqOptions) -> Prepared:
    """Factor a second moment; it is memory-mapped, and unmapped when this returns."""
    H = torch.from_numpy(statistics.hessian(name)[0])
    return prepare(H, options.act_order, options.damp)


def _packed(layer: str, rounded: Rounded, bits: int) -> Iterator[tuple[str, Tensor]]:
    """A layer's four tensors."""
    yield f"{layer}.qweight", pack.pack(rounded.codes.T.contiguous(), bits)
    yield f"{layer}.qzeros", pack.pack_zeros(rounded.zeros, bits)
    yield f"{layer}.scales", rounded.scales.half()
    yield f"{layer}.g_idx", rounded.g_idx


def _finite(source: Source, parameter: str) -> Tensor:
    W = source.tensor(parameter)
    if not W.isfinite().all():
        raise CorruptModelError(f"{parameter} holds a NaN or an infinity", "fetch the model again")
    return W


def _numel(entry: Entry) -> int:
    return torch.Size(entry.shape).numel()


def _quantization_config(options: GptqOptions) -> dict[str, Any]:
    """What transformers, GPTQModel and AutoGPTQ read; ``gptq`` is the format with zero points minus one."""
    return {
        "quant_method": "gptq",
        "checkpoint_format": V1,
        "bits": options.bits,
        "group_size": options.group_size,
        "desc_act": options.act_order,
        "sym": False,
        "damp_percent": options.damp,
        "true_sequential": False,
        "static_groups": False,
        "lm_head": False,
        "meta": {"quantizer": [f"coldpress:{__version__}"]},
    }
