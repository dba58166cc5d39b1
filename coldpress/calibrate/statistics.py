"""Second moments on disk: one file per input, shared by the weights that multiply it.

``hessian/INPUT.npy``  float32 (experts, k, k): E[x xᵀ] over the sequences to fit to
``held/INPUT.npy``     float32 (experts, n ≤ 512, k): inputs of held-out sequences, zero rows last
``tokens.npy``         int32 (sequences, context)
``statistics.json``    who shares an input, tokens per expert, where a weight lives in the model

INPUT is the first weight's GGUF name without ``.weight``; a plain matrix is one expert.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from coldpress.calibrate.names import Place
from coldpress.errors import InputError

if TYPE_CHECKING:
    from coldpress.calibrate.moments import Moments

Floats = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]

FORMAT_VERSION = 1
_FILE, _TOKENS = "statistics.json", "tokens.npy"
_HINT = "make it again with `coldpress calibrate`"


@dataclass(frozen=True)
class _Input:
    """One input in ``statistics.json``; ``filled`` are the experts that borrowed tokens."""

    tensors: tuple[str, ...]
    experts: int
    inputs: int
    counts: tuple[int, ...]
    filled: tuple[int, ...]


class Statistics:
    """What a calibration knows of each weight's input, by the weight's GGUF name.

    ``tokens`` are the calibration sequences, (sequences, context) int32; ``held`` the indices of
    those that no second moment has seen.
    """

    def __init__(
        self,
        folder: Path,
        tokens: npt.NDArray[np.int32],
        held: tuple[int, ...],
        inputs: Mapping[str, _Input],
        places: Mapping[str, tuple[Place, ...]],
    ) -> None:
        """See ``read``."""
        self.folder, self.tokens, self.held = folder, tokens, held
        self._inputs, self._places = inputs, places
        self._input_of = {tensor: key for key, each in inputs.items() for tensor in each.tensors}

    @property
    def names(self) -> tuple[str, ...]:
        """The weights' GGUF names."""
        return tuple(self._input_of)

    def input_of(self, name: str) -> str:
        """The input that a weight multiplies; weights of one input give the same."""
        if name not in self._input_of:
            raise InputError(f"{self.folder} has nothing on {name}", "calibrate this very model")
        return self._input_of[name]

    def hessian(self, name: str) -> Floats:
        """E[x xᵀ] over the sequences to fit to, (experts, k, k) float32, memory-mapped.

        Raises:
            InputError: there is none, or it holds a NaN or an infinity.
        """
        H = self._open("hessian", name)
        for each in H:
            if not np.isfinite(each).all():
                raise InputError(f"{self._path('hessian', name)} is not finite", _HINT)
        return H

    def held_inputs(self, name: str) -> Floats:
        """Inputs of held-out tokens, (experts, n, k) float32, memory-mapped; zero rows pad."""
        return self._open("held", name)

    def counts(self, name: str) -> Counts:
        """Tokens that H is over, (experts,), without what starved experts borrowed."""
        return np.array(self._inputs[self.input_of(name)].counts, np.int64)

    def filled(self, name: str) -> tuple[int, ...]:
        """The experts that saw fewer tokens than inputs, and borrowed from all; see ``moments``."""
        return self._inputs[self.input_of(name)].filled

    def places(self, name: str) -> tuple[Place, ...]:
        """Where the weight lives in the Hugging Face model, one part after the other, in GGUF's order."""
        self.input_of(name)
        return self._places[name]

    def check(self) -> None:
        """Open every file once.

        Raises:
            InputError: one is missing or has another shape.
        """
        for key, each in self._inputs.items():
            for kind in ("hessian", "held"):
                self._open(kind, each.tensors[0] if each.tensors else key)

    def _path(self, kind: str, name: str) -> Path:
        return self.folder / kind / f"{self.input_of(name)}.npy"

    def _open(self, kind: str, name: str) -> Floats:
        about, path = self._inputs[self.input_of(name)], self._path(kind, name)
        data: Floats = _load(path, mmap=True)
        middle = about.inputs if kind == "hessian" else data.shape[1] if data.ndim == 3 else -1
        if data.shape != (about.experts, middle, about.inputs) or data.dtype != np.float32:
            raise InputError(
                f"{path} is {data.dtype} {data.shape}, not {about.inputs} inputs of "
                f"{about.experts} experts",
                _HINT,
            )
        return data


def read(folder: Path) -> Statistics:
    """Read the second moments of an artifact of calibrate.

    Raises:
        InputError: it has none, or they are incomplete.
    """
    path = folder / _FILE
    if not path.is_file():
        raise InputError(
            f"{folder} has no second moments", "give a folder that `coldpress calibrate` wrote"
        )
    try:
        data = json.loads(path.read_bytes())
        if data["format_version"] != FORMAT_VERSION:
            raise InputError(f"{path} has format {data['format_version']}", _HINT)
        inputs = {
            key: _Input(**{name: _plain(value) for name, value in each.items()})
            for key, each in data["inputs"].items()
        }
        places = {
            name: tuple(_read_place(each) for each in given)
            for name, given in data["places"].items()
        }
        held = tuple(data["held"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is unreadable: {error!r}", _HINT) from error
    statistics = Statistics(folder, _load(folder / _TOKENS), held, inputs, places)
    statistics.check()
    return statistics


class Writer:
    """Writes the files of a calibration one input at a time."""

    def __init__(self, folder: Path, places: Mapping[str, tuple[Place, ...]]) -> None:
        """Write below ``folder`` about the weights in ``places``."""
        self._folder, self._places = folder, places
        self._inputs: dict[str, dict[str, Any]] = {}
        for kind in ("hessian", "held"):
            (folder / kind).mkdir()

    def add(self, tensors: Sequence[str], moments: "Moments") -> None:
        """Write one input, shared by ``tensors``.

        Raises:
            InputError: the disk is full.
        """
        key = tensors[0].removesuffix(".weight")
        self._save("hessian", key, moments.hessian)
        self._save("held", key, moments.held)
        experts, inputs = moments.sums.shape
        self._inputs[key] = {
            "tensors": list(tensors),
            "experts": experts,
            "inputs": inputs,
            "counts": moments.n_fit.tolist(),
            "filled": list(moments.filled),
        }

    def _save(self, kind: str, key: str, values: Floats) -> None:
        try:
            np.save(self._folder / kind / f"{key}.npy", values)
        except OSError as error:
            raise InputError(
                f"cannot write {values.nbytes / 1e9:.1f} GB of second moments of {key}: {error}",
                "give a folder on a larger disk: a layer's take 4 bytes by its inputs squared",
            ) from error

    def finish(self, tokens: npt.NDArray[np.int32], held: Iterable[int]) -> None:
        """Write the tokens and ``statistics.json``."""
        np.save(self._folder / _TOKENS, tokens)
        data = {
            "format_version": FORMAT_VERSION,
            "held": list(held),
            "inputs": self._inputs,
            "places": {
                name: [_write_place(each) for each in places]
                for name, places in self._places.items()
            },
        }
        text = json.dumps(data, indent=1)
        (self._folder / _FILE).write_text(text + "\n", encoding="utf-8")


def _load(path: Path, mmap: bool = False) -> Any:
    try:
        return np.load(path, mmap_mode="c" if mmap else None)
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing", _HINT) from error
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} is not an array: {error}", _HINT) from error


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _write_place(place: Place) -> list[Any]:
    rows = None if place.rows is None else [place.rows.start, place.rows.stop]
    return [place.parameter, place.expert, rows]


def _read_place(given: Sequence[Any]) -> Place:
    parameter, expert, rows = given
    return Place(parameter, expert, None if rows is None else slice(*rows))
