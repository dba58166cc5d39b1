"""A model by its hub id: fetched into Hugging Face's own cache."""

import re
from pathlib import Path

from coldpress.errors import NotAModelError, ToolError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# What conversion and transformers read; weights in pickle formats stay away.
_WANTED = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt", "*.md", "LICENSE*"]


def resolve(model: str | Path, revision: str | None) -> Path:
    """The folder of a model: a path as it is, a hub id after a download into the hub's cache.

    Raises:
        NotAModelError: neither an existing path nor a hub id's form, or no such model on the hub.
        ToolError: the hub cannot be reached and the cache lacks the model.
    """
    if Path(model).exists():
        return Path(model)
    if not isinstance(model, str) or not _HUB_ID.fullmatch(model):
        raise NotAModelError(
            f"{model} does not exist", "give a model folder or a hub id like org/name"
        )
    return _download(model, revision)


def _download(model: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError as error:
        raise ToolError(
            "huggingface_hub is not installed", "pip install 'coldpress[compress]'"
        ) from error
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=_WANTED))
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise NotAModelError(
            f"no model {model} at revision {revision or 'main'} on the hub",
            "check the id; a gated or private model needs HF_TOKEN",
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ToolError(
            f"cannot reach the hub for {model}, and its cache has no copy",
            "check the network and HF_HUB_OFFLINE, or give a model folder",
        ) from error
