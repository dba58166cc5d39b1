"""`coldpress prune`: the same model with fewer weights."""

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from coldpress.cli_output import Json, Out, print_result

app = typer.Typer()


@app.command()
def prune(
    model: Annotated[Path, typer.Argument(help="Hugging Face folder")],
    out: Out,
    how: Annotated[str, typer.Option(help="depth, width, or experts of a mixture")] = "depth",
    ratio: Annotated[
        float | None, typer.Option(help="share of the blocks' weights to take out: 0.25")
    ] = None,
    params: Annotated[str | None, typer.Option(help="or: most weights in all: 5M")] = None,
    size: Annotated[str | None, typer.Option(help="or: most bytes, with --bpw: 2.4MB")] = None,
    bpw: Annotated[float | None, typer.Option(help="bits per weight that --size is for")] = None,
    speedup: Annotated[
        str | None, typer.Option(help="or: fewer weights read for each token: 1.5x")
    ] = None,
    by: Annotated[str, typer.Option(help="blocks by kl, or by influence (quicker)")] = "kl",
    heterogeneous: Annotated[
        bool, typer.Option("--heterogeneous", help="each block its own shape")
    ] = False,
    multiple: Annotated[
        int | None, typer.Option(help="of widths; default: up to 256, as K-quants need")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="plain text to measure on; default: the embedded text")
    ] = None,
    against: Annotated[
        list[Path] | None, typer.Option(help="text to evaluate on: refused as --text; repeatable")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="of the text")] = 16384,
    json_: Json = False,
) -> None:
    """Take blocks, neurons and heads, or experts out of a model."""
    from coldpress import demo
    from coldpress import prune as stage

    options = stage.PruneOptions(
        how=cast("Any", how),
        ratio=ratio,
        params=params,
        size=size,
        bpw=bpw,
        speedup=speedup,
        by=cast("Any", by),
        heterogeneous=heterogeneous,
        multiple=multiple,
        max_tokens=max_tokens,
    )
    made = stage.prune(
        model, out, options, text=text or demo.CALIBRATION_TEXT, against=against or ()
    )
    print_result(made, json_)
