"""What a package says of the model in it, from the checkpoint's own header and index."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coldpress import memory as account
from coldpress.memory import Memory
from coldpress.platforms import Target, table

_INDEX = "model.index.json"


@dataclass(frozen=True)
class Facts:
    """A model: ``fields`` is its GGUF metadata, ``files`` file → sha256; ``license`` may be empty."""

    name: str
    root_sha256: str
    size_bytes: int
    architecture: str
    license: str
    files: Mapping[str, str]
    fields: Mapping[str, Any]


def read(checkpoint: Path, root_sha256: str) -> Facts:
    """Read a verified checkpoint's facts."""
    from coldpress.checkpoint import index, source

    fields = {field.key: field.value() for field in source.read(checkpoint).fields}
    listed = index.read(checkpoint / _INDEX).files
    return Facts(
        name=_printable(fields.get("general.name")) or "a model",
        root_sha256=root_sha256,
        size_bytes=sum(file.size_bytes for file in listed),
        architecture=_printable(fields.get("general.architecture")),
        license=_printable(fields.get("general.license")),
        files={file.name: file.sha256 for file in listed},
        fields=fields,
    )


def memory(facts: Facts, target: Target) -> Memory:
    """What an instance needs beside the weights, served as the image starts it."""
    shape = account.Shape.read(facts.fields)
    return account.account(shape, None, table().targets[target].parallel)


def _printable(text: object) -> str:
    """It goes into YAML and Markdown: letters, digits and a few signs only."""
    return "".join(sign for sign in str(text or "") if sign.isalnum() or sign in " ._-").strip()
