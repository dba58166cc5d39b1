"""`coldpress runs`: what was run, with which figures."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from coldpress.cli_output import Json, print_result

app = typer.Typer(help="What was run, and what came of it.", no_args_is_help=True)

Store = Annotated[Path, typer.Option("--store", envvar="COLDPRESS_RUNS", help="run store")]
_DEFAULT_STORE = Path("runs/.store")


@app.command("ls")
def ls(store: Store = _DEFAULT_STORE, json_: Json = False) -> None:
    """List what was run, the oldest first."""
    from coldpress.runs import show

    listed = _listing(store)
    _shown(listed, json_, show.runs)


@app.command("show")
def show_run(
    id_: Annotated[str, typer.Argument(metavar="ID", help="start of an id or a run id")],
    store: Store = _DEFAULT_STORE,
    json_: Json = False,
) -> None:
    """Print everything that is recorded of a run."""
    from coldpress import runs
    from coldpress.runs import show

    _shown(runs.find(_listing(store), id_), json_, show.run)


@app.command("diff")
def diff(
    a: Annotated[str, typer.Argument(help="start of an id or a run id")],
    b: Annotated[str, typer.Argument(help="start of another")],
    store: Store = _DEFAULT_STORE,
    json_: Json = False,
) -> None:
    """Print what two runs did otherwise, and their figures side by side."""
    from coldpress import runs
    from coldpress.runs import show

    listed = _listing(store)
    _shown(runs.diff(runs.find(listed, a), runs.find(listed, b)), json_, show.difference)


def remember(record: Any, store: Path) -> None:
    """Append to the run store; a full disk there must not take the result away."""
    from coldpress import runs
    from coldpress.progress import note

    try:
        runs.append(store, record)
    except OSError as error:
        note(f"note: not recorded in {store}: {error.strerror}")


def _listing(store: Path) -> Any:
    """A store's listing; what is damaged is named on stderr and left out."""
    from coldpress import runs
    from coldpress.progress import note

    listed = runs.listing(store)
    for damage in listed.damaged:
        note(f"note: skipped {damage}")
    return listed


def _shown(result: Any, as_json: bool, show: Callable[[Any], None]) -> None:
    if as_json:
        print_result(result, as_json)
    else:
        show(result)
