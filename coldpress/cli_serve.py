"""The commands that answer: serve, ask, chat."""

import sys
from typing import Annotated

import typer

from coldpress.cli_output import Json, Out, print_result

app = typer.Typer()


@app.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
def serve(context: typer.Context) -> None:
    """Serve a checkpoint: the OpenAI API on the CPU."""
    from coldpress.serve.__main__ import main as serve_main

    raise typer.Exit(serve_main(context.args))


@app.command()
def ask(
    checkpoint: Annotated[str, typer.Argument(help="folder that checkpoint wrote, or its address")],
    prompt: Annotated[str, typer.Argument(help="what to ask")],
    out: Out,
    trace: Annotated[
        bool, typer.Option("--trace", help="draw what the start consisted of")
    ] = False,
    json_: Json = False,
) -> None:
    """Start the runtime cold, ask it one question, time it."""
    from coldpress.serve import ask as stage
    from coldpress.serve import timeline

    answer = stage.ask(checkpoint, out, stage.AskOptions(prompt=prompt))
    if trace:
        print(timeline.draw(answer.timeline), file=sys.stderr)
    print_result(answer, json_, answer.text)


@app.command()
def chat(
    where: Annotated[str, typer.Argument(help="a server's address, or a checkpoint to serve")],
    system: Annotated[str | None, typer.Option(help="what the model is told first")] = None,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token")] = 1.0,
    max_tokens: Annotated[int | None, typer.Option(help="of each answer")] = None,
    seed: Annotated[int | None, typer.Option(help="makes answers repeatable")] = None,
) -> None:
    """Chat in the terminal with a server or a checkpoint; lines from a pipe are answered in turn."""
    from coldpress import chat as terminal

    asked = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
    with terminal.at(where) as opened:
        opened.options = {name: value for name, value in asked.items() if value is not None}
        terminal.talk(opened, system)
