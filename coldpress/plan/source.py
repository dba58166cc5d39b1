"""What is planned for: a model as it is, or at types and bits that it does not have yet."""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coldpress.errors import InputError, UsageError
from coldpress.memory import Shape, read_shares

_CONFIG = (
    *("num_attention_heads", "num_hidden_layers", "hidden_size"),
    *("intermediate_size", "vocab_size"),
)
_MAX_JSON_BYTES = 64 << 20
_DEFAULT_BITS = ("2", "3", "4", "8")
_TOKENS, _MERGES = "tokenizer.ggml.tokens", "tokenizer.ggml.merges"
# A GGUF's vocabulary and names against a Hugging Face folder's tokenizer, which is JSON.
_HEADER_ERROR_PCT = 2.0
# A sweep's files stay a little below their budget.
_BUDGET_ERROR_PCT = 1.0


@dataclass(frozen=True)
class Variant:
    """A file: ``size_error_pct`` 0 is exact. ``read_bytes``: type → bytes that a token reads."""

    name: str
    size_bytes: int
    size_error_pct: float
    size_basis: str
    read_bytes: Mapping[str, float]


def variants(model: Path, bits: Sequence[str]) -> tuple[Shape, list[Variant]]:
    """A model's shape and its files: as it is, and at each of ``bits``.

    Args:
        model: a GGUF, an artifact or checkpoint with one, or a Hugging Face folder.
        bits: bits per weight or names of ggml types; by default some, for a Hugging Face folder.

    Raises:
        InputError: there is no model.
        UsageError: a type is asked of a file that is quantized already.
    """
    if (model / "config.json").is_file():
        return _of_folder(model, bits or _DEFAULT_BITS)
    return _of_gguf(model, bits)


def _of_gguf(model: Path, bits: Sequence[str]) -> tuple[Shape, list[Variant]]:
    from coldpress.checkpoint import source

    found = source.read(model)
    fields = {field.key: field.value() for field in found.fields}
    share = read_shares(fields, [tensor.name for tensor in found.tensors])
    read: dict[str, float] = defaultdict(float)
    for tensor in found.tensors:
        read[tensor.type] += tensor.size_bytes * share[tensor.name]
    size = sum(path.stat().st_size for path in found.paths)
    index = found.paths[0].with_name("model.index.json")
    size += index.stat().st_size if index.is_file() else 0
    whole = Variant("as it is", size, 0, "the files' size", read)
    return Shape.read(fields), [whole, *(_quantized(found.paths[0], text, share) for text in bits)]


def _quantized(gguf: Path, text: str, share: Mapping[str, float]) -> Variant:
    """What ``quantize --type`` or ``--bpw`` would write of an unquantized GGUF."""
    from coldpress.quantize import budget, layout
    from coldpress.quantize.source import open_unquantized
    from coldpress.quantize.types import GgmlType

    reader = open_unquantized(gguf)
    metadata = {"general.file_type": 0, "general.quantization_version": 2}
    if (wanted := _bits(text)) is not None:
        kind = _nearest(wanted)
        plan = layout.uniform(reader, kind)
        scale = wanted / kind.bits_per_weight
        size, error = budget.file_bytes(wanted, reader, metadata), _BUDGET_ERROR_PCT
        basis = "the budget of quantize --bpw, which it may stay below"
    else:
        from coldpress.quantize.types import resolve

        kind_or_preset = resolve(text)
        if not isinstance(kind_or_preset, GgmlType):
            raise UsageError(
                f"{text} is a mix whose size only llama.cpp knows",
                "give its type or a number of bits",
            )
        plan, scale, error = layout.uniform(reader, kind_or_preset), 1.0, 0.0
        size = layout.predict_size(reader, plan, metadata)
        basis = "the file that quantize --type writes without a calibration"
    read: dict[str, float] = defaultdict(float)
    for tensor in reader.tensors:
        kind_name = plan[tensor.name].name if tensor.name in plan else tensor.tensor_type.name
        of_tensor = layout.tensor_bytes(tensor, plan) * share[tensor.name]
        read[kind_name] += of_tensor * (scale if tensor.name in plan else 1)
    return Variant(_named(text), size, error, basis, read)


def _of_folder(model: Path, bits: Sequence[str]) -> tuple[Shape, list[Variant]]:
    from coldpress.checkpoint import safetensors_header
    from coldpress.convert.checks import check_weights, read_config

    config = read_config(model)
    check_weights(model)
    paths = sorted(model.glob("*.safetensors"))
    shapes = {t.name: t.shape for path in paths for t in safetensors_header.read(path).tensors}
    if config.get("tie_word_embeddings"):
        shapes.pop("lm_head.weight", None)
    matrices = {name: math.prod(shape) for name, shape in shapes.items() if len(shape) > 1}
    vectors = sum(math.prod(shape) for shape in shapes.values() if len(shape) == 1)
    untied = "lm_head.weight" in shapes
    experts = config.get("num_local_experts") or config.get("num_experts") or 1
    chosen = config.get("num_experts_per_tok", experts) / experts
    read = sum(
        n * (chosen if ".experts." in name else 1)
        for name, n in matrices.items()
        if not (untied and "embed_tokens" in name)
    )
    shape, header = _folder_shape(model, config)
    planned = []
    for text in bits:
        kind_name, each = _kind(text)
        size = header + round(sum(matrices.values()) * each / 8) + 4 * vectors
        basis = "weights from the safetensors headers, the vocabulary guessed from its JSON"
        planned.append(
            Variant(_named(text), size, _HEADER_ERROR_PCT, basis, {kind_name: read * each / 8})
        )
    return shape, planned


def _folder_shape(model: Path, config: dict[str, Any]) -> tuple[Shape, int]:
    """The shape, and about how many bytes a GGUF's header will have."""
    if missing := [key for key in _CONFIG if not isinstance(config.get(key), int)]:
        raise UsageError(
            f"{model / 'config.json'} has no {missing[0]}",
            "`coldpress convert` the model, and plan the GGUF",
        )
    heads = config["num_attention_heads"]
    fields: dict[str, Any] = {
        "general.architecture": "hf",
        "hf.context_length": config.get("max_position_embeddings", 1 << 20),
        "hf.block_count": config["num_hidden_layers"],
        "hf.embedding_length": config["hidden_size"],
        "hf.feed_forward_length": config["intermediate_size"],
        "hf.attention.head_count": heads,
        "hf.attention.head_count_kv": config.get("num_key_value_heads") or heads,
        _TOKENS: range(config["vocab_size"]),
    }
    if config.get("head_dim"):
        fields["hf.attention.key_length"] = config["head_dim"]
    tokenizer = model / "tokenizer.json"
    header = config["vocab_size"] * 24
    if tokenizer.is_file() and tokenizer.stat().st_size <= _MAX_JSON_BYTES:
        try:
            fields[_MERGES] = json.loads(tokenizer.read_bytes())["model"].get("merges", [])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{tokenizer} is not a tokenizer", "fetch it again") from error
        header += len(fields[_MERGES]) * 16
    return Shape.read(fields), header


def _kind(text: str) -> tuple[str, float]:
    """A type's name and bits per weight."""
    from coldpress.quantize.types import GgmlType, resolve

    if (wanted := _bits(text)) is not None:
        return _nearest(wanted).name, wanted
    kind = resolve(text)
    if not isinstance(kind, GgmlType):
        raise UsageError(f"{text} is a mix of types", "give a type or a number of bits")
    return kind.name, kind.bits_per_weight


def _nearest(bits: float) -> Any:
    """The type that a file of so many bits is most like."""
    from coldpress.quantize.types import TYPES

    return min(TYPES.values(), key=lambda kind: abs(kind.bits_per_weight - bits))


def _bits(text: str) -> float | None:
    from coldpress.quantize.budget import parse_bits

    try:
        float(text)
    except ValueError:
        return None
    return parse_bits(text)


def _named(text: str) -> str:
    return f"{text} bits" if _bits(text) is not None else text.upper()
