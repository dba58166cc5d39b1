"""What is in a GGUF: each tensor's type and bytes, the totals, and what quantizing did, if recorded."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coldpress.checkpoint import chunks, fields, gguf_header, source
from coldpress.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

_RECORDS = "tensors.json"


@dataclass(frozen=True)
class Entry:
    """A tensor: ``shape`` has the row length last.

    ``relative_rms_error`` and ``kl_nats``, its share of the KL, are None where nobody recorded them.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    size_bytes: int
    bits_per_weight: float
    relative_rms_error: float | None
    kl_nats: float | None


@dataclass(frozen=True)
class Total:
    """All tensors of a type."""

    type: str
    n_tensors: int
    n_weights: int
    size_bytes: int
    bits_per_weight: float


@dataclass(frozen=True)
class Prefix:
    """The state of a system prompt beside a checkpoint; of use where the CPU takes these variants."""

    n_tokens: int
    size_bytes: int
    cpu_variants: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """How a checkpoint is laid out: its format, its files and the root over all their chunks."""

    format_version: int
    alignment: int
    chunk_bytes: int
    n_chunks: int
    root_sha256: str
    files: tuple[str, ...]
    prefix: Prefix | None


@dataclass(frozen=True)
class Inspected:
    """A model: ``size_bytes`` is of all its files; ``bits_per_weight`` counts the tensors' bytes.

    ``layout`` is None for a GGUF that is no checkpoint.
    """

    path: str
    size_bytes: int
    n_weights: int
    bits_per_weight: float
    tensors: tuple[Entry, ...]
    types: tuple[Total, ...]
    layout: Layout | None


def inspect(path: Path) -> Inspected:
    """Read a GGUF's header and, beside it, the ``tensors.json`` of an artifact of quantize.

    Args:
        path: a GGUF file, a first shard, or a folder with either.

    Raises:
        InputError: there is no GGUF, a shard is missing, or the records are not this file's.
        IntegrityError: a checkpoint's digests contradict one another.
    """
    model = source.read(path)
    first = model.paths[0]
    records = _records(first.with_name(_RECORDS))
    entries = tuple(_entry(tensor, records.get(tensor.name, {})) for tensor in model.tensors)
    if records and any(records.get(e.name, {}).get("type") != e.type for e in entries):
        raise InputError(
            f"{first.with_name(_RECORDS)} is of another file than {first}", "quantize it again"
        )
    n_weights = sum(math.prod(entry.shape) for entry in entries)
    stored = sum(entry.size_bytes for entry in entries)
    return Inspected(
        path=str(first),
        size_bytes=sum(each.stat().st_size for each in model.paths),
        n_weights=n_weights,
        bits_per_weight=_bits(stored, n_weights),
        tensors=entries,
        types=_totals(entries),
        layout=_layout(model.paths),
    )


def _layout(paths: Iterable[Path]) -> Layout | None:
    """What the headers of a checkpoint's files say of them."""
    files = [(path, gguf_header.read(path)) for path in paths]
    if files[0][1].field("coldpress.format_version") is None:
        return None
    read = [fields.digests(header, str(path)) for path, header in files]
    return Layout(
        format_version=fields.FORMAT_VERSION,
        alignment=files[-1][1].alignment,  # a first shard has no tensors to align
        chunk_bytes=read[0].chunk_bytes,
        n_chunks=sum(len(each.chunk_sha256) for each in read),
        root_sha256=chunks.root(digest for each in read for digest in each.chunk_sha256),
        files=tuple(path.name for path, _ in files),
        prefix=_prefix(files[0][0]),
    )


def _prefix(first: Path) -> Prefix | None:
    from coldpress.serve import prefix

    shipped = prefix.find(first)
    if shipped is None:
        return None
    variants = tuple(str(cpu.get("variant")) for cpu in shipped.key.get("cpus", ()))
    return Prefix(len(shipped.tokens), shipped.size_bytes, variants)


def _entry(tensor: gguf_header.Tensor, record: dict[str, Any]) -> Entry:
    return Entry(
        name=tensor.name,
        shape=tensor.shape[::-1],
        type=tensor.type,
        size_bytes=tensor.size_bytes,
        bits_per_weight=_bits(tensor.size_bytes, math.prod(tensor.shape)),
        relative_rms_error=record.get("relative_rms_error"),
        kl_nats=record.get("kl_nats"),
    )


def _records(path: Path) -> dict[str, dict[str, Any]]:
    """What quantize wrote about each tensor; nothing where it wrote nothing."""
    if not path.is_file():
        return {}
    try:
        return {record["name"]: record for record in json.loads(path.read_bytes())["tensors"]}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not a list of tensors: {error}", "quantize it again"
        ) from error


def _totals(entries: Iterable[Entry]) -> tuple[Total, ...]:
    """Per type, the one with the most bytes first."""
    by_type: dict[str, list[Entry]] = {}
    for entry in entries:
        by_type.setdefault(entry.type, []).append(entry)
    totals = []
    for name, some in by_type.items():
        weights, stored = sum(math.prod(e.shape) for e in some), sum(e.size_bytes for e in some)
        totals.append(Total(name, len(some), weights, stored, _bits(stored, weights)))
    return tuple(sorted(totals, key=lambda total: (-total.size_bytes, total.type)))


def _bits(size_bytes: int, n_weights: int) -> float:
    return 8 * size_bytes / n_weights if n_weights else 0.0


def show(inspected: Inspected) -> None:
    """Print the tensors, the types and the sum for a person, on stdout."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120  # Not the 80 of a pipe, which would cut names off.
    console.print(_tensor_table(inspected.tensors))
    console.print(_type_table(inspected))
    if inspected.layout:
        console.print(_layout_table(inspected.layout))


def _tensor_table(entries: Iterable[Entry]) -> "Table":
    """A column that no tensor has an entry for is left out."""
    some = list(entries)
    errors = any(entry.relative_rms_error is not None for entry in some)
    kl = any(entry.kl_nats is not None for entry in some)
    extra = (["error"] if errors else []) + (["KL"] if kl else [])
    table = _table("tensor", "type", "shape", "bytes", "bits/weight", *extra)
    for entry in some:
        shape = " × ".join(map(str, entry.shape))
        cells = [entry.name, entry.type, shape, f"{entry.size_bytes:,}"]
        cells.append(f"{entry.bits_per_weight:.2f}")
        cells += [_figure(entry.relative_rms_error)] if errors else []
        cells += [_figure(entry.kl_nats)] if kl else []
        table.add_row(*cells)
    return table


def _type_table(inspected: Inspected) -> "Table":
    table = _table("type", "tensors", "weights", "bytes", "bits/weight", labels=1)
    for total in inspected.types:
        numbers = (total.n_tensors, total.n_weights, total.size_bytes)
        table.add_row(total.type, *(f"{n:,}" for n in numbers), f"{total.bits_per_weight:.2f}")
    sums = (len(inspected.tensors), inspected.n_weights, inspected.size_bytes)
    table.add_row("the file", *(f"{n:,}" for n in sums), f"{inspected.bits_per_weight:.2f}")
    return table


def _layout_table(layout: Layout) -> "Table":
    table = _table("checkpoint", "")
    table.add_row("format", str(layout.format_version))
    table.add_row("files", ", ".join(layout.files))
    table.add_row("alignment", f"{layout.alignment:,} bytes")
    table.add_row("chunks", f"{layout.n_chunks:,} of {layout.chunk_bytes:,} bytes")
    table.add_row("root sha256", layout.root_sha256)
    if prefix := layout.prefix:
        what = f"{prefix.n_tokens:,} tokens, {prefix.size_bytes:,} bytes, for {', '.join(prefix.cpu_variants)}"
        table.add_row("prefix", what)
    return table


def _table(*columns: str, labels: int = 2) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for place, name in enumerate(columns):
        table.add_column(name, justify="left" if place < labels else "right", no_wrap=True)
    return table


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
