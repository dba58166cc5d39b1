"""What can be known to fail before anything long starts: config, architecture, weights' sizes."""

import ast
import json
import struct
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from coldpress.errors import CorruptModelError, NotAModelError, UnsupportedModelError

_MAX_JSON_BYTES = 64 << 20
_MAX_HEADER_BYTES = 100_000_000  # The safetensors format's own limit.
_WINDOW_IGNORED = frozenset(
    {"mistral", "mixtral", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"}
)
_INDEX = "model.safetensors.index.json"


def read_config(model: Path) -> dict[str, Any]:
    """The model's ``config.json``.

    Raises:
        NotAModelError: no folder, no config, or it is not a JSON object with an architecture.
    """
    if not model.is_dir():
        raise NotAModelError(
            f"{model} is not a folder", "give a Hugging Face model folder or hub id"
        )
    config = _read_json(model / "config.json")
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise NotAModelError(
            f"{model / 'config.json'} names no architecture",
            "give a causal language model saved by transformers",
        )
    return config


def known_architectures(tree: Path) -> frozenset[str]:
    """The text architectures that the converter in ``tree`` registers, read from its source."""
    path = tree / "conversion" / "__init__.py"
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        match node:
            case ast.AnnAssign(target=ast.Name("TEXT_MODEL_MAP"), value=ast.Dict() as table):
                return frozenset(ast.literal_eval(table))
    raise UnsupportedModelError(
        f"{path} lists no architectures", "use the llama.cpp that the runtime was built from"
    )


def check_architecture(config: dict[str, Any], known: frozenset[str]) -> None:
    """Refuse what the converter does not know, and what it would convert silently wrong.

    Raises:
        UnsupportedModelError: with the closest known names, or the setting that llama.cpp lacks.
    """
    name = config["architectures"][0]
    if name not in known:
        close = get_close_matches(name, sorted(known), n=3, cutoff=0.5)
        hint = f"close names it knows: {', '.join(close)}" if close else "choose another model"
        raise UnsupportedModelError(f"llama.cpp's converter does not know {name}", hint)
    # llama.cpp always renormalises the chosen experts' weights; transformers' default is not to.
    if name == "Qwen3MoeForCausalLM" and not config.get("norm_topk_prob", False):
        raise UnsupportedModelError(
            "norm_topk_prob is false; llama.cpp always normalises Qwen3-MoE's expert weights",
            "it would convert without an error and answer wrongly; choose another model",
        )


def ignored_window(config: dict[str, Any]) -> int | None:
    """The tokens after which llama.cpp attends to more than the model was made to; None if never.

    llama.cpp runs these families without their sliding window.
    """
    family, window = str(config.get("model_type")), config.get("sliding_window")
    used = config.get("use_sliding_window", not family.startswith("qwen"))
    if family not in _WINDOW_IGNORED or not isinstance(window, int) or not used:
        return None
    return window if window < config.get("max_position_embeddings", window) else None


def check_weights(model: Path) -> None:
    """Compare every safetensors file's length with its header, and the index with the files.

    Raises:
        NotAModelError: there are no safetensors weights.
        CorruptModelError: the named file is missing, truncated, too long or unreadable.
    """
    index = model / _INDEX
    if index.is_file():
        names = sorted(set(_read_json(index).get("weight_map", {}).values()))
        missing = [name for name in names if not (model / name).is_file()]
        if missing:
            raise CorruptModelError(
                f"{model} lacks {', '.join(missing)}, which {_INDEX} names", "fetch them again"
            )
        paths = [model / name for name in names]
    else:
        paths = sorted(model.glob("*.safetensors"))
    if not paths:
        raise NotAModelError(
            f"{model} has no *.safetensors weights", "save it with save_pretrained"
        )
    for path in paths:
        _check_length(path)


def _check_length(path: Path) -> None:
    """Hold a safetensors file's size against its header: 8 bytes, the header, then the data."""
    size_bytes = path.stat().st_size
    with path.open("rb") as stream:
        prefix = stream.read(8)
        header_bytes = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= header_bytes <= _MAX_HEADER_BYTES:
            raise CorruptModelError(f"{path} is not a safetensors file", "fetch it again")
        header = stream.read(header_bytes)
    if len(header) < header_bytes:
        short = header_bytes - len(header)
        raise CorruptModelError(f"{path} ends {short} bytes inside its header", "fetch it again")
    try:
        entries = json.loads(header)
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name[0] != "_"]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CorruptModelError(f"{path} has an unreadable header", "fetch it again") from error
    missing = 8 + header_bytes + max(ends, default=0) - size_bytes
    if missing > 0:
        raise CorruptModelError(
            f"{path} is truncated: {missing} bytes are missing", "fetch it again"
        )
    if missing < 0:
        raise CorruptModelError(f"{path} has {-missing} bytes too many", "fetch it again")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise NotAModelError(f"{path} is too large to be a config", "check the folder")
        data = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise NotAModelError(
            f"{path.parent} has no {path.name}", "give a Hugging Face model folder"
        ) from error
    except (OSError, ValueError) as error:
        raise NotAModelError(f"{path} is not readable JSON: {error}", "fetch it again") from error
    if not isinstance(data, dict):
        raise NotAModelError(f"{path} is not a JSON object", "fetch it again")
    return data
