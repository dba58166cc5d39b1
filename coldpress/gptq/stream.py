"""Safetensors files read and written a tensor at a time, so that no model is ever whole in memory."""

import json
import shutil
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from coldpress.errors import CorruptModelError

_SIZES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1}
_SIZES |= {"BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}
_BESIDE = {".json", ".model", ".jinja", ".txt", ".md"}


@dataclass(frozen=True)
class Entry:
    """A tensor's type, in safetensors' name for it, and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes in the file."""
        return _SIZES[self.dtype] * prod(self.shape)


class Source:
    """Every tensor of a model folder's safetensors files; a context manager."""

    def __init__(self, folder: Path) -> None:
        """Read the headers only.

        Raises:
            CorruptModelError: a tensor has a type that is not known here.
        """
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}
        self.entries: dict[str, Entry] = {}
        for path in sorted(folder.glob("*.safetensors")):
            opened = self._stack.enter_context(safe_open(path, "pt"))
            for name in opened.keys():  # noqa: SIM118  # safe_open is no mapping
                view = opened.get_slice(name)
                self._files[name] = opened
                self.entries[name] = Entry(view.get_dtype(), tuple(view.get_shape()))
                if view.get_dtype() not in _SIZES:
                    raise CorruptModelError(
                        f"{path}: {name} has the type {view.get_dtype()}", "fetch it again"
                    )

    def __enter__(self) -> "Source":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def tensor(self, name: str) -> Tensor:
        """One tensor, read now."""
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor


def write(path: Path, entries: Mapping[str, Entry], tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write a file whose tensors are known by ``entries`` and come in any order, each once."""
    order = sorted(entries, key=lambda name: (-_SIZES[entries[name].dtype], name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offsets, end = {}, 0
    for name in order:
        entry, offsets[name] = entries[name], end
        end += entry.size_bytes
        header[name] = {
            "dtype": entry.dtype,
            "shape": entry.shape,
            "data_offsets": [offsets[name], end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors:
            data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
            if data.nbytes != entries[name].size_bytes:
                raise ValueError(f"{name} is {tuple(tensor.shape)}, not {entries[name].shape}")
            stream.seek(8 + len(text) + offsets.pop(name))
            stream.write(data.data)
    if offsets:
        raise ValueError(f"never given: {', '.join(offsets)}")


def copy_beside(model: Path, out: Path, leave: Iterable[str]) -> None:
    """Copy what lies beside the weights – tokenizer, chat template, licence – but the names in ``leave``."""
    skipped = {*leave, "model.safetensors.index.json"}
    for path in sorted(model.iterdir()):
        wanted = path.suffix in _BESIDE or path.name.startswith("LICENSE")
        if wanted and path.is_file() and path.name not in skipped:
            shutil.copyfile(path, out / path.name)
