"""The commands that take images: lint."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from coldpress.cli_output import Json, print_result

app = typer.Typer()


@app.command()
def lint(
    image: Annotated[Path, typer.Argument(help="an OCI layout or archive, or a docker archive")],
    target: Annotated[str | None, typer.Option(help="lambda or cloudrun; default: both")] = None,
    limit_bytes: Annotated[int | None, typer.Option(help="largest unpacked size")] = None,
    json_: Json = False,
) -> None:
    """Hold an image against the platforms' rules; exit 3 when one is broken."""
    from coldpress.package import lint as stage

    options = stage.LintOptions(
        target=target,  # type: ignore[arg-type]  # checked by the options themselves
        limit_bytes=limit_bytes,
    )
    linted = stage.lint(image, options)
    print("\n".join(stage.lines(linted)), file=sys.stderr)
    if json_:
        print_result(linted, json_)
    stage.enforce(linted)
