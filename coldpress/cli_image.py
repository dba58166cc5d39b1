"""The commands that take images: lint, push, pull."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from coldpress.cli_output import Json, Out, print_result

app = typer.Typer()

Insecure = Annotated[bool, typer.Option("--insecure", help="plain HTTP to the registry")]


@app.command()
def lint(
    image: Annotated[
        str, typer.Argument(help="an OCI layout or archive, a docker archive, or a reference")
    ],
    target: Annotated[str | None, typer.Option(help="lambda or cloudrun; default: both")] = None,
    limit_bytes: Annotated[int | None, typer.Option(help="largest unpacked size")] = None,
    insecure: Insecure = False,
    json_: Json = False,
) -> None:
    """Hold an image against the platforms' rules; exit 3 when one is broken."""
    from coldpress.package import lint as stage
    from coldpress.package import registry

    options = stage.LintOptions(
        target=target,  # type: ignore[arg-type]  # checked by the options themselves
        limit_bytes=limit_bytes,
    )
    if not Path(image).exists() and registry.looks_like(image):
        with registry.opened(image, insecure=insecure) as remote:
            linted = stage.lint(remote, options)
    else:
        linted = stage.lint(Path(image), options)
    print("\n".join(stage.lines(linted)), file=sys.stderr)
    if json_:
        print_result(linted, json_)
    stage.enforce(linted)


@app.command()
def push(
    path: Annotated[
        Path, typer.Argument(help="image.tar, an OCI layout, or a checkpoint (as a ModelPack)")
    ],
    reference: Annotated[str, typer.Argument(help="HOST/REPOSITORY:TAG")],
    mount: Annotated[
        list[str] | None, typer.Option(help="repository there that has layers; repeatable")
    ] = None,
    insecure: Insecure = False,
    json_: Json = False,
) -> None:
    """Send an image or a checkpoint to a registry; what is there is skipped."""
    from coldpress.package import registry

    pushed = registry.push(path, reference, mount=tuple(mount or ()), insecure=insecure)
    print_result(pushed, json_, pushed.reference)


@app.command()
def pull(
    reference: Annotated[str, typer.Argument(help="HOST/REPOSITORY:TAG or @DIGEST")],
    out: Out,
    insecure: Insecure = False,
    json_: Json = False,
) -> None:
    """Fetch an image as an OCI layout, or a ModelPack as its files; every byte is proven."""
    from coldpress.package import registry

    path = registry.pull(reference, out, insecure=insecure)
    print_result({"path": str(path), "reference": reference}, json_, str(path))
