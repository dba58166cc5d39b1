"""`coldpress plan`: what a model will need and cost, before anything is built."""

from pathlib import Path
from typing import Annotated

import typer

from coldpress.cli_output import Json, print_result
from coldpress.errors import UsageError

app = typer.Typer()


@app.command()
def plan(
    model: Annotated[
        list[Path], typer.Argument(help="GGUF, artifact, checkpoint or Hugging Face folder")
    ],
    bits: Annotated[
        list[str] | None, typer.Option(help="bits per weight or ggml types: 2,3,4,8 or Q4_K,Q8_0")
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="lambda, cloudrun, kserve, …; repeatable")
    ] = None,
    memory: Annotated[str | None, typer.Option(help="of an instance: 3008MB, 2GiB")] = None,
    context: Annotated[int | None, typer.Option(help="tokens of KV cache per answer")] = None,
    traffic: Annotated[str | None, typer.Option(help="requests: 100000/month")] = None,
    request_tokens: Annotated[int, typer.Option(help="generated for each")] = 500,
    storage: Annotated[
        str | None, typer.Option(help="where weights start: page-cache, disk, network, snapshot")
    ] = None,
    measure: Annotated[bool, typer.Option("--measure", help="speed of this machine, now")] = False,
    json_: Json = False,
) -> None:
    """Predict size, memory, cold start, speed and cost on each platform."""
    from coldpress import plan as stage
    from coldpress.plan import show
    from coldpress.plan.stage import enforce

    chosen = {} if target is None else {"targets": tuple(target)}
    options = stage.PlanOptions(
        bits=tuple(part.strip() for part in ",".join(bits or ()).split(",") if part.strip()),
        memory=memory,
        context=context,
        traffic=_per_month(traffic),
        request_tokens=request_tokens,
        storage=storage,
        measure=measure,
        **chosen,
    )
    for each in model:
        planned = stage.plan(each, options)
        print_result(planned, json_, "\n".join(show.lines(planned)))
        enforce(planned)


def _per_month(text: str | None) -> int | None:
    """``100000/month``, or the number alone."""
    if text is None:
        return None
    number, _, per = text.partition("/")
    if not number.isdecimal() or per not in ("", "month"):
        raise UsageError(f"{text!r} is not traffic", "--traffic 100000/month")
    return int(number)
