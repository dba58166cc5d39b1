"""Two records side by side: what was run otherwise, and the figures of the files that came of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coldpress.runs.record import Figures, Record
from coldpress.runs.store import Stored


@dataclass(frozen=True)
class Change:
    """A value that differs; None where a record has none."""

    what: str
    a: Any
    b: Any


@dataclass(frozen=True)
class Difference:
    """``changed``: options, inputs, tools and machine; ``figures``: file → of the first, of the second."""

    a: str
    b: str
    changed: tuple[Change, ...]
    figures: dict[str, tuple[Figures | None, Figures | None]]


def diff(a: Stored, b: Stored) -> Difference:
    """Compare two records. The order is the arguments': what ``b`` has otherwise than ``a``."""
    left, right = _values(a.record), _values(b.record)
    names = [*left, *(name for name in right if name not in left)]
    changed = tuple(
        Change(name, left.get(name), right.get(name))
        for name in names
        if left.get(name) != right.get(name)
    )
    one, other = a.record.figures, b.record.figures
    files = [*one, *(name for name in other if name not in one)]
    return Difference(
        a.id, b.id, changed, {name: (one.get(name), other.get(name)) for name in files}
    )


def _values(record: Record) -> dict[str, Any]:
    """Everything a record was made from, by dotted names: ``options.quantize.plain``."""
    # The run id is of the code too: where it alone differs, the code does.
    about = {"command": record.command, "name": record.name, "run_id": record.run_id}
    parts: dict[str, Mapping[str, Any]] = {
        "options": record.options,
        "inputs": record.inputs,
        "tools": record.tools,
        "machine": record.machine,
    }
    return about | {
        name: value for part, values in parts.items() for name, value in _flat(part, values).items()
    }


def _flat(at: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:
        return {at: value}
    return {
        name: leaf
        for key, each in value.items()
        for name, leaf in _flat(f"{at}.{key}", each).items()
    }
