"""Which type each tensor gets, and what the file will then weigh, to the byte.

A plan is a mapping tensor name → type; what it does not name is copied. Writing and predicting know
nothing of how the plan came about, so an allocation under a budget only has to make another one.
"""

from collections.abc import Mapping
from typing import Any

from coldpress.errors import UsageError
from coldpress.quantize.source import is_quantizable, row_length
from coldpress.quantize.types import GgmlType, fitting

Plan = Mapping[str, GgmlType]
Metadata = Mapping[str, int | str]

_HEADER_BYTES = 24  # Magic, version, number of tensors, number of key-value pairs.
_LENGTH_BYTES = 8
_TYPE_BYTES = 4


def uniform(reader: Any, kind: GgmlType) -> dict[str, GgmlType]:
    """Every matrix at one type, embeddings and head included.

    A tensor whose rows do not divide into the type's blocks gets the smallest type of shorter
    blocks that does not store fewer bits: a different type in the plan, never a silent one.

    Raises:
        UsageError: no type fits a tensor's rows.
    """
    chosen = {}
    for tensor in filter(is_quantizable, reader.tensors):
        found = fitting(kind, row_length(tensor))
        if found is None:
            raise UsageError(
                f"{tensor.name} has rows of {row_length(tensor)}, which no type's blocks divide",
                "keep this model at f16 (convert --outtype f16); blocks are 32 or 256 weights",
            )
        chosen[tensor.name] = found
    return chosen


def predict_size(reader: Any, plan: Plan, metadata: Metadata) -> int:
    """The exact size in bytes of the file that ``write`` makes of the same arguments.

    Source: the GGUF specification, version 3.
    """
    kept = (field for name, field in reader.fields.items() if _is_pair(name, metadata))
    pairs = sum(sum(part.nbytes for part in field.parts) for field in kept)
    pairs += sum(_pair_bytes(key, value) for key, value in metadata.items())
    infos = sum(_info_bytes(tensor) for tensor in reader.tensors)
    data = sum(_padded(tensor_bytes(tensor, plan), reader.alignment) for tensor in reader.tensors)
    return _padded(_HEADER_BYTES + pairs + infos, reader.alignment) + data


def tensor_bytes(tensor: Any, plan: Plan) -> int:
    """Bytes of a tensor's data under a plan, without padding."""
    if (kind := plan.get(tensor.name)) is None:
        return int(tensor.n_bytes)
    length = row_length(tensor)
    return int(tensor.n_elements) // length * kind.row_bytes(length)


def _is_pair(name: str, metadata: Metadata) -> bool:
    """Whether a reader's field is a key-value pair that ``metadata`` does not replace."""
    return not name.startswith("GGUF.") and name not in metadata


def _pair_bytes(key: str, value: int | str) -> int:
    size = 4 if isinstance(value, int) else _LENGTH_BYTES + len(value.encode())
    return _LENGTH_BYTES + len(key.encode()) + _TYPE_BYTES + size


def _info_bytes(tensor: Any) -> int:
    """A tensor's entry: name, number of dimensions, dimensions, type, offset."""
    return _LENGTH_BYTES + len(tensor.name.encode()) + 4 + 8 * len(tensor.shape) + _TYPE_BYTES + 8


def _padded(size: int, alignment: int) -> int:
    return int(-(-size // int(alignment)) * int(alignment))
