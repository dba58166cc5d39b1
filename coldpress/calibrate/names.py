"""Hugging Face's parameters ↔ GGUF's tensors, for the weights that take second moments."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gguf

from coldpress.errors import UnsupportedModelError

# transformers' model_type where GGUF's architecture has another name.
_ARCHITECTURES = {
    "mistral": "llama",
    "mixtral": "llama",
    "gemma3_text": "gemma3",
    "phi": "phi2",
}
# Stacks of experts: the parameter's name → the layers in it, by the names that GGUF's map knows;
# several share the rows evenly, in this order.
_STACKS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
_ROUTERS = ("ffn_gate_inp", "ffn_gate_inp_shexp")  # llama.cpp keeps them as they are.
_HINT = "make the imatrix with llama-imatrix, or quantize without one"


@dataclass(frozen=True)
class Place:
    """Where a GGUF tensor, or one expert of it, lives in the Hugging Face model.

    ``expert`` is the index into a stacked parameter, None for a plain matrix; ``rows`` is the part
    of the (expert's) matrix that is meant, None for all of it.
    """

    parameter: str
    expert: int | None = None
    rows: slice | None = None


def weights(model: Any) -> dict[str, tuple[Place, ...]]:
    """GGUF weight name → its places in GGUF's order, for every matrix that is multiplied.

    A head that shares the embeddings' weights has their name, as it is stored once. Embeddings that
    are only looked up have no input and are left out, as are routers.

    Raises:
        UnsupportedModelError: the architecture or a matrix has no GGUF name.
    """
    tensors = tensor_names(model.config)
    decoder, _ = text_decoder(model)
    found: dict[str, tuple[Place, ...]] = {}
    for path, module in model.named_modules():
        if not f"{path}.".startswith(f"{decoder}.") and module is not model.get_output_embeddings():
            continue  # A part that sees images, say.
        for name, value in module.named_parameters(recurse=False):
            if value.ndim > 1 and not _is_lookup(module):
                for tensor, places in _places(model, tensors, path, name, value):
                    found[tensor] = places
    return {name: places for name, places in found.items() if not _is_router(name)}


def text_decoder(model: Any) -> tuple[str, Any]:
    """The path of the part that makes hidden states of tokens, and the part.

    It is ``model``, or ``model.language_model`` beside a part that sees images.
    """
    decoder = model.get_decoder()
    return next(path for path, each in model.named_modules() if each is decoder), decoder


def _places(
    model: Any, tensors: Any, path: str, name: str, value: Any
) -> Iterator[tuple[str, tuple[Place, ...]]]:
    """GGUF tensors that a parameter holds, with their places."""
    parameter = f"{path}.{name}"
    if value is model.get_input_embeddings().weight:
        yield "token_embd.weight", (Place(_embedding_name(model)),)
    elif value.ndim == 2 and name == "weight":
        yield _gguf_name(tensors, path, parameter), (Place(parameter),)
    elif value.ndim == 3 and name in _STACKS:
        layers = _STACKS[name]
        share = value.shape[1] // len(layers)
        for index, layer in enumerate(layers):
            rows = slice(index * share, (index + 1) * share) if len(layers) > 1 else None
            places = (Place(parameter, expert, rows) for expert in range(value.shape[0]))
            yield _gguf_name(tensors, f"{path}.{layer}", parameter), tuple(places)
    else:
        raise UnsupportedModelError(
            f"calibration does not reach {parameter}: it is not in a linear layer", _HINT
        )


def _embedding_name(model: Any) -> str:
    embeddings = model.get_input_embeddings()
    return next(f"{path}.weight" for path, each in model.named_modules() if each is embeddings)


def _is_lookup(module: Any) -> bool:
    import torch

    return isinstance(module, torch.nn.Embedding)


def _is_router(tensor: str) -> bool:
    return tensor.removesuffix(".weight").rpartition(".")[2] in _ROUTERS


def tensor_names(config: Any) -> Any:
    """The map of the gguf package, Hugging Face layers to GGUF tensors.

    Raises:
        UnsupportedModelError: llama.cpp has no such architecture.
    """
    config = config.get_text_config()
    name = _ARCHITECTURES.get(config.model_type, config.model_type.replace("_", ""))
    for architecture, known in gguf.MODEL_ARCH_NAMES.items():
        if known == name:
            return gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    raise UnsupportedModelError(
        f"calibration does not know the layers of {config.model_type}", _HINT
    )


def _gguf_name(tensors: Any, layer: str, parameter: str) -> str:
    found = tensors.get_name(layer.replace("model.language_model.", "model."))
    if found is None:
        raise UnsupportedModelError(f"{parameter} has no name in GGUF", _HINT)
    return f"{found}.weight"
