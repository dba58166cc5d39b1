"""`coldpress package` and `coldpress deploy`: an image or a zip, and the commands that start it somewhere."""

from pathlib import Path
from typing import Annotated, Any

import typer

from coldpress.cli_output import Json, Out, print_result
from coldpress.errors import UsageError

app = typer.Typer()


@app.command()
def package(
    checkpoint: Annotated[Path, typer.Argument(help="folder that checkpoint wrote")],
    out: Out,
    target: Annotated[
        str,
        typer.Option(help="lambda, lambda-snapstart, lambda-microvm, cloudrun, kserve, compose"),
    ],
    base: Annotated[
        str, typer.Option(help="debian, an OCI layout or archive, a reference")
    ] = "debian",
    limit_bytes: Annotated[int | None, typer.Option(help="largest unpacked size")] = None,
    memory_mib: Annotated[int | None, typer.Option(help="of an instance")] = None,
    system_prompt: Annotated[
        Path | None, typer.Option(help="text file: read now, so that no instance has to")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="address that instances fetch the checkpoint from")
    ] = None,
    json_: Json = False,
) -> None:
    """Build the image and the deployment files of a platform."""
    from coldpress import package as stage

    limit: dict[str, Any] = {} if limit_bytes is None else {"limit_bytes": limit_bytes}
    options = stage.PackageOptions(
        target=target,  # type: ignore[arg-type]  # checked by the options themselves
        base=base,
        memory_mib=memory_mib,
        system_prompt=str(system_prompt) if system_prompt else None,
        weights=weights,
        **limit,
    )
    print_result(stage.package(checkpoint, out, options), json_)


@app.command()
def deploy(
    folder: Annotated[Path, typer.Argument(help="folder that package wrote")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE, see DEPLOY.md; repeatable")
    ] = None,
    execute: Annotated[bool, typer.Option("--execute", help="run the commands")] = False,
    json_: Json = False,
) -> None:
    """Print the commands that deploy a package; run them with --execute."""
    from coldpress.package import execute as stage

    values = dict(_pair(text) for text in set_ or ())
    deployed = stage.deploy(folder, values, execute=execute)
    print_result(deployed, json_, "\n".join(deployed.commands))


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"{text!r} is no NAME=VALUE", "--set REGION=europe-west1")
    return name, value
