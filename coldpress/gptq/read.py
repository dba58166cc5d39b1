"""Unpack a GPTQ checkpoint as AutoGPTQ and GPTQModel write it: its layers as plain matrices."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from coldpress.convert import checks, reference
from coldpress.errors import CorruptModelError
from coldpress.gptq import pack
from coldpress.gptq.layout import OLD_CONFIG, Layout
from coldpress.gptq.options import BITS
from coldpress.gptq.stream import Entry, Source, copy_beside, write
from coldpress.progress import task

_DTYPES = {"bf16": ("BF16", torch.bfloat16), "f16": ("F16", torch.float16)}
_DTYPES |= {"f32": ("F32", torch.float32)}
_PARTS = ("qweight", "qzeros", "scales", "g_idx")
_AGAIN = "fetch the model again"


def dequantize(folder: Path, layout: Layout, out: Path, outtype: str) -> None:
    """Write a GPTQ checkpoint's plain model into ``out``, a tensor at a time.

    Args:
        outtype: type of the matrices that were packed, bf16, f16 or f32; the rest keeps its own.

    Raises:
        CorruptModelError: a part of a layer is missing, of a wrong shape or not finite, or ``g_idx``
            names a group that is not there.
    """
    config = checks.read_config(folder)
    config.pop("quantization_config", None)
    (out / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    copy_beside(folder, out, leave=["config.json", OLD_CONFIG])
    dtype, kind = _DTYPES[outtype]
    with Source(folder) as source:
        layers = _layers(source, layout)
        packed = {f"{layer}.{part}" for layer in layers for part in _PARTS}
        packed |= _added_biases(source, layers, out)
        entries = {name: entry for name, entry in source.entries.items() if name not in packed}
        kept = list(entries)
        for layer in layers:
            rows, inputs = source.entries[f"{layer}.scales"].shape[1], len(layers[layer])
            entries[f"{layer}.weight"] = Entry(dtype, (rows, inputs))

        def tensors() -> Iterator[tuple[str, Tensor]]:
            for name in kept:
                yield name, source.tensor(name)
            with task("dequantizing", len(layers)) as advance:
                for layer, g_idx in layers.items():
                    yield f"{layer}.weight", _weights(source, layer, g_idx, layout).to(kind)
                    advance(1)

        write(out / "model.safetensors", entries, tensors())


def _layers(source: Source, layout: Layout) -> dict[str, Tensor]:
    """Packed layer → the group of each of its inputs, all shapes and groups checked."""
    names = [name.removesuffix(".qweight") for name in source.entries if name.endswith(".qweight")]
    if not names:
        raise CorruptModelError("a GPTQ checkpoint without a packed layer", _AGAIN)
    return {layer: _check_layer(source, layer, layout) for layer in names}


def _check_layer(source: Source, layer: str, layout: Layout) -> Tensor:
    for part in _PARTS[:3]:
        if f"{layer}.{part}" not in source.entries:
            raise CorruptModelError(f"{layer} lacks its {part}", _AGAIN)
    if f"{layer}.weight" in source.entries:
        raise CorruptModelError(f"{layer} is there packed and plain", _AGAIN)
    qweight, qzeros, scales = (source.entries[f"{layer}.{part}"] for part in _PARTS[:3])
    if {len(each.shape) for each in (qweight, qzeros, scales)} != {2}:
        raise CorruptModelError(f"{layer} has parts that are no matrices", _AGAIN)
    groups, rows = scales.shape
    g_idx = _groups_of(source, layer, qweight.shape[0], layout)
    bits = _bits(qweight.shape[0], len(g_idx), layout)
    expected = [("I32", (len(g_idx) * bits // 32, rows)), ("I32", (groups, rows * bits // 32))]
    ragged = not len(g_idx) or len(g_idx) % pack.LANES or rows % pack.LANES
    found = [(each.dtype, each.shape) for each in (qweight, qzeros)]
    if bits not in BITS or ragged or found != expected:
        raise CorruptModelError(
            f"{layer} of {layout.bits} bits does not fit together: qweight {qweight.shape}, qzeros "
            f"{qzeros.shape}, scales {scales.shape}, {len(g_idx)} inputs",
            "an AWQ checkpoint is not read; else fetch it again",
        )
    if g_idx.min() < 0 or g_idx.max() >= groups:
        raise CorruptModelError(f"{layer}.g_idx names a group beyond its {groups}", _AGAIN)
    return g_idx


def _groups_of(source: Source, layer: str, packed_rows: int, layout: Layout) -> Tensor:
    """``g_idx``, or what it would be in a checkpoint that leaves it out."""
    if f"{layer}.g_idx" in source.entries:
        return source.tensor(f"{layer}.g_idx").reshape(-1)
    inputs = packed_rows * 32 // layout.bits
    return torch.arange(inputs) // (layout.group_size if layout.group_size > 0 else inputs)


def _bits(packed_rows: int, inputs: int, layout: Layout) -> int:
    return packed_rows * 32 // max(inputs, 1) if layout.mixed else layout.bits


def _added_biases(source: Source, layers: Mapping[str, Tensor], plain_model: Path) -> set[str]:
    """Biases of zeros that AutoGPTQ stored for layers that have none in the model."""
    biases = [f"{layer}.bias" for layer in layers if f"{layer}.bias" in source.entries]
    if not biases:
        return set()
    known = {name for name, _ in reference.empty_model(plain_model).named_parameters()}
    return {name for name in biases if name not in known and not source.tensor(name).any()}


def _weights(source: Source, layer: str, g_idx: Tensor, layout: Layout) -> Tensor:
    qweight, qzeros, scales = (source.tensor(f"{layer}.{part}") for part in _PARTS[:3])
    bits = _bits(len(qweight), len(g_idx), layout)
    W = pack.dequantize(qweight, qzeros, scales, g_idx, bits, layout.checkpoint_format)
    if not W.isfinite().all():
        raise CorruptModelError(f"{layer}.scales hold a NaN or an infinity", _AGAIN)
    return W
