"""A model's weights, read from safetensors a part at a time into a model without any.

transformers' own loader does the renaming, the stacking of experts and the conversion to float32,
on a few tensors of the checkpoint instead of all.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open

from coldpress.errors import CorruptModelError, InputError

_SLAB_WEIGHTS = 1 << 20


class Weights:
    """Where each parameter of a model lies in a folder's files."""

    def __init__(self, folder: Path, model: Any) -> None:
        """Read the names only; ``model`` has its parameters on the meta device."""
        self._model = model
        self._files: dict[str, Path] = {}  # Checkpoint name → file.
        self._sources: dict[str, list[str]] = {}  # Parameter → checkpoint names.
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, "pt") as opened:
                self._files |= dict.fromkeys(opened.keys(), path)
        for name, parameter in _parameters_of(model, list(self._files)):
            self._sources.setdefault(parameter, []).append(name)

    def names(self) -> list[str]:
        """The parameters that the files hold."""
        return list(self._sources)

    def load(self, parameters: Sequence[str], device: torch.device) -> None:
        """Load some parameters in float32.

        Raises:
            CorruptModelError: one is missing, of another shape, or holds a NaN or an infinity.
        """
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        with ExitStack() as stack:
            opened = {
                path: stack.enter_context(safe_open(path, "pt")) for path in self._paths(parameters)
            }
            tensors = {
                name: opened[self._files[name]].get_slice(name)
                for parameter in parameters
                for name in self._sources.get(parameter, [])
            }
            config = LoadStateDictConfig(
                dtype=torch.float32,
                device_map={"": device},
                weight_mapping=get_model_conversion_mapping(self._model),
            )
            convert_and_load_state_dict_in_model(self._model, tensors, config)
        for parameter in parameters:
            self._check(parameter)

    def rows(self, parameter: str, wanted: npt.ArrayLike) -> torch.Tensor:
        """Some rows of a matrix, (len(wanted), inputs), float32; all of it is read and checked.

        Args:
            wanted: sorted row numbers.

        Raises:
            CorruptModelError: it is missing, or a value anywhere is a NaN or an infinity.
            InputError: it has no such row.
        """
        numbers = np.asarray(wanted, np.int64)
        total, inputs = self._model.get_parameter(parameter).shape
        if len(numbers) and numbers[-1] >= total:
            raise InputError(
                f"the tokenizer gives token {numbers[-1]}; {parameter} has {total} rows",
                "put the model's own tokenizer beside its weights",
            )
        rows = torch.empty(len(numbers), inputs)
        for start, slab in self._slabs(parameter):
            first, last = np.searchsorted(numbers, [start, start + len(slab)])
            rows[first:last] = slab[numbers[first:last] - start]
        return rows

    def _slabs(self, parameter: str) -> Iterator[tuple[int, torch.Tensor]]:
        """(First row, some rows) through a matrix; the file is reopened so that no page stays."""
        if len(names := self._sources.get(parameter, [])) != 1:
            raise CorruptModelError(f"the weights lack {parameter}", "fetch them again")
        total, inputs = self._model.get_parameter(parameter).shape
        step = max(1, _SLAB_WEIGHTS // inputs)
        for start in range(0, total, step):
            with safe_open(self._files[names[0]], "pt") as opened:
                slab = opened.get_slice(names[0])[start : start + step].float()
            _check_finite(names[0], slab)
            yield start, slab

    def _paths(self, parameters: Sequence[str]) -> set[Path]:
        return {self._files[name] for each in parameters for name in self._sources.get(each, [])}

    def _check(self, parameter: str) -> None:
        value = self._model.get_parameter(parameter)
        if value.is_meta:
            raise CorruptModelError(
                f"the weights lack {parameter}, or have it in another shape", "fetch them again"
            )
        _check_finite(parameter, value)


def _parameters_of(model: Any, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(Checkpoint name, the parameter that it is or becomes a part of); others are left out."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
    converters = [each for each in mapping if isinstance(each, WeightConverter)]
    state = model.state_dict()
    for name in names:
        for rules in ((renamings, converters), ([], [])):
            parameter, _ = rename_source_key(name, *rules, model.base_model_prefix, state)
            if parameter in state:
                yield name, parameter
                break


def _check_finite(name: str, value: torch.Tensor) -> None:
    # In pieces: its intermediate results are as large as the value itself.
    if not all(bool(part.isfinite().all()) for part in torch.split(value.flatten(), _SLAB_WEIGHTS)):
        raise CorruptModelError(f"{name} holds a NaN or an infinity", "fetch the model again")
