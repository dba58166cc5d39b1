"""Hugging Face's module names → GGUF's tensor names, for the layers that take an imatrix."""

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


def linear_layers(model: Any) -> dict[str, str]:
    """Module name → GGUF weight name of every linear layer, in the model's order.

    A head that shares the embeddings' weights has their name, as it is stored once.

    Raises:
        UnsupportedModelError: the architecture or a layer has no GGUF name, or there are matrices
            outside linear layers and embeddings (experts stacked in one parameter).
    """
    import torch

    tensors = _tensor_names(model.config)
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            layers[name] = _gguf_name(model, name, module, tensors)
        elif not isinstance(module, torch.nn.Embedding):
            _refuse_matrices(name, module)
    return layers


def _tensor_names(config: Any) -> Any:
    name = _ARCHITECTURES.get(config.model_type, config.model_type.replace("_", ""))
    for architecture, known in gguf.MODEL_ARCH_NAMES.items():
        if known == name:
            return gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    raise UnsupportedModelError(
        f"calibration does not know the layers of {config.model_type}",
        "make the imatrix with llama-imatrix, or quantize without one",
    )


def _gguf_name(model: Any, name: str, module: Any, tensors: Any) -> str:
    embeddings = model.get_input_embeddings()
    if module is model.get_output_embeddings() and module.weight is embeddings.weight:
        return "token_embd.weight"
    found = tensors.get_name(name)
    if found is None:
        raise UnsupportedModelError(
            f"the layer {name} has no name in GGUF", "make the imatrix with llama-imatrix"
        )
    return f"{found}.weight"


def _refuse_matrices(name: str, module: Any) -> None:
    for parameter, value in module.named_parameters(recurse=False):
        if value.ndim > 1:
            raise UnsupportedModelError(
                f"calibration does not reach {name}.{parameter}: it is not in a linear layer",
                "make the imatrix with llama-imatrix, or quantize without one",
            )
