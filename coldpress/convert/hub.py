"""A model by its hub id."""

from pathlib import Path

from coldpress import hub
from coldpress.errors import NotAModelError

# What conversion and transformers read; weights in pickle formats stay away.
_WANTED = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.txt", "*.md", "LICENSE*")


def resolve(model: str | Path, revision: str | None) -> Path:
    """The folder of a model: a path as it is, a hub id after a download into the hub's cache.

    Raises:
        NotAModelError: neither an existing path nor a hub id's form, or no such model on the hub.
        ToolError: the hub cannot be reached and the cache lacks the model.
    """
    if Path(model).exists():
        return Path(model)
    if not isinstance(model, str) or not hub.ID.fullmatch(model):
        raise NotAModelError(
            f"{model} does not exist", "give a model folder or a hub id like org/name"
        )
    try:
        return hub.snapshot(model, "model", _WANTED, revision)
    except hub.NoSuchRepositoryError as error:
        raise NotAModelError(error.message, error.hint) from error
