"""The store for a person: a table of runs, one run, two runs side by side."""

import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from coldpress.runs.diff import Difference
from coldpress.runs.index import Listing
from coldpress.runs.record import Figures
from coldpress.runs.store import Stored

if TYPE_CHECKING:
    from rich.table import Table

_NOTHING = "–"
_DIGEST = 64
# Column → a file's value in it, and how it is written.
_COLUMNS: dict[str, tuple[Callable[[Figures], float | None], Callable[[float], str]]] = {
    "MB": (lambda of: of.size_bytes / 1e6, lambda value: f"{value:.2f}"),
    "bpw": (lambda of: of.bits_per_weight, lambda value: f"{value:.2f}"),
    "accuracy": (lambda of: of.accuracy, lambda value: f"{100 * value:.1f} %"),
    "KL": (lambda of: of.kl_nats, lambda value: f"{value:.4f}"),
    "perplexity": (lambda of: of.perplexity, lambda value: f"{value:.3f}"),
    "tok/s": (lambda of: of.tok_per_s, lambda value: f"{value:.0f}"),
}


def runs(listed: Listing) -> None:
    """Print a line per record; of several files the least and the most of each figure."""
    table = _table("id", "command", "name", "files", *_COLUMNS, labels=3)
    for each in listed.records:
        record, files = each.record, each.record.figures
        ranges = [_range(column, files.values()) for column in _COLUMNS]
        table.add_row(each.id, record.command, record.name, str(len(files)), *ranges)
    _print(table)


def run(stored: Stored) -> None:
    """Print everything that one record says."""
    record = stored.record
    about = _table("", "", labels=2, head=False)
    said = {"id": stored.id, "when": f"{stored.when} UTC", "command": record.command}
    said |= {"name": record.name} | ({"recipe": record.recipe} if record.recipe else {})
    for part in ("paths", "inputs", "tools", "machine", "options"):
        said |= {f"{part}.{name}": value for name, value in getattr(record, part).items()}
    for name, value in said.items():
        about.add_row(name, _plain(value))
    table = _table("file", *_COLUMNS)
    for name, figures in record.figures.items():
        table.add_row(name, *(_cell(column, figures) for column in _COLUMNS))
    _print(about, table)


def difference(two: Difference) -> None:
    """Print what changed, and each file's figures with the second record's after an arrow."""
    changed = _table("changed", two.a, two.b, labels=3)
    for change in two.changed:
        changed.add_row(change.what, _plain(change.a), _plain(change.b))
    table = _table("file", *_COLUMNS)
    for name, (a, b) in two.figures.items():
        table.add_row(name, *(_beside(_cell(column, a), _cell(column, b)) for column in _COLUMNS))
    _print(*([changed] if two.changed else ["nothing that was run differs"]), table)


def _range(column: str, files: Iterable[Figures]) -> str:
    read, write = _COLUMNS[column]
    values = [value for each in files if (value := read(each)) is not None]
    if not values:
        return _NOTHING
    least, most = write(min(values)), write(max(values))
    return least if least == most else f"{least.removesuffix(' %')}–{most}"


def _cell(column: str, figures: Figures | None) -> str:
    read, write = _COLUMNS[column]
    value = None if figures is None else read(figures)
    return _NOTHING if value is None else write(value)


def _beside(a: str, b: str) -> str:
    return a if a == b else f"{a} → {b}"


def _plain(value: Any) -> str:
    """A value in one cell; a digest by its first letters."""
    if isinstance(value, str):
        return (
            value[:16] if len(value) == _DIGEST and set(value) <= set("0123456789abcdef") else value
        )
    return _NOTHING if value is None else json.dumps(value, ensure_ascii=False, sort_keys=True)


def _table(*columns: str, labels: int = 1, head: bool = True) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold", show_header=head)
    for place, name in enumerate(columns):
        table.add_column(
            name, justify="left" if place < labels else "right", overflow="fold", no_wrap=False
        )
    return table


def _print(*parts: "Table | str") -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 160  # Not the 80 of a pipe, which would fold ids.
    for part in parts:
        console.print(part)
