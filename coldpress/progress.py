"""What a waiting person sees: one live display on stderr, silent when nobody watches."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Tick = Callable[[float], None]


@contextmanager
def task(description: str, total: float) -> Iterator[Tick]:
    """Show a bar with an estimate of the time left; call the yielded function with each advance.

    Nothing is drawn when stderr is not a terminal, so logs and pipes stay clean.
    """
    if not sys.stderr.isatty():
        yield lambda _advance: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("  {task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as display:
        bar = display.add_task(description, total=total)
        yield lambda advance: display.advance(bar, advance)


def note(message: str) -> None:
    """Print one line for a person on stderr."""
    print(message, file=sys.stderr, flush=True)
