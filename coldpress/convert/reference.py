"""The one door to transformers: local folders, no remote code, no bars of its own on stderr."""

from pathlib import Path
from typing import Any

from coldpress.errors import NotAModelError, ToolError


def load_tokenizer(model_dir: Path) -> Any:
    """The model's tokenizer.

    Raises:
        NotAModelError: the folder has no tokenizer that transformers can read.
    """
    transformers = _quiet()
    try:
        return transformers.AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise NotAModelError(
            f"{model_dir} has no tokenizer that transformers reads: {_first_line(error)}",
            "put tokenizer.json, or tokenizer.model and tokenizer_config.json, beside the weights",
        ) from error


def load_model(model_dir: Path) -> Any:
    """The causal language model in float32 on the CPU, in evaluation mode.

    Raises:
        NotAModelError: transformers cannot build it from the folder.
    """
    transformers = _quiet()
    import torch

    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            model_dir, dtype=torch.float32, local_files_only=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise NotAModelError(
            f"transformers cannot load {model_dir}: {_first_line(error)}",
            "check config.json and the weights",
        ) from error
    return model.eval()


def empty_model(model_dir: Path) -> Any:
    """The causal language model with its parameters on the meta device and real buffers.

    Experts run one after the other as plain matrix products, so that each one's input can be seen.

    Raises:
        NotAModelError: transformers cannot build it from the folder's config.
    """
    transformers = _quiet()
    import torch
    from accelerate import init_empty_weights

    try:
        config = transformers.AutoConfig.from_pretrained(model_dir, local_files_only=True)
        with init_empty_weights(include_buffers=False):
            model = transformers.AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, experts_implementation="eager"
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise NotAModelError(
            f"transformers cannot build {model_dir}: {_first_line(error)}", "check config.json"
        ) from error
    model.tie_weights()  # Leaving the meta device's context made two parameters of a shared one.
    return model.eval()


def _quiet() -> Any:
    """Import transformers, silenced."""
    try:
        import transformers
    except ImportError as error:
        raise ToolError(
            "transformers is not installed", "pip install 'coldpress[compress]'"
        ) from error
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]
