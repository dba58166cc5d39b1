"""`coldpress distill`: a teacher's answers into a smaller model."""

import os
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from coldpress.cli_output import Json, Out, print_result

app = typer.Typer()


@app.command()
def distill(
    teacher: Annotated[Path, typer.Argument(help="Hugging Face folder of the teacher")],
    out: Out,
    student: Annotated[
        Path | None, typer.Option(help="folder with the same tokenizer, for example a pruned one")
    ] = None,
    layers: Annotated[
        int | None, typer.Option(help="instead: so many of the teacher's blocks")
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(help="files, a folder, or a data set's name; default: the demo's lessons"),
    ] = None,
    against: Annotated[
        list[Path] | None, typer.Option(help="text to evaluate on: refused as --text; repeatable")
    ] = None,
    tokens: Annotated[str, typer.Option(help="to train on in all: 2M")] = "2M",
    text_tokens: Annotated[
        str | None, typer.Option(help="most to take of the text; then it is read again")
    ] = None,
    context: Annotated[int, typer.Option(help="tokens of a window")] = 256,
    batch_tokens: Annotated[int, typer.Option(help="tokens of a step, all processes")] = 4096,
    accumulate: Annotated[int, typer.Option(help="parts a step's windows are taken in")] = 1,
    rate: Annotated[float, typer.Option(help="highest learning rate")] = 2e-4,
    weight_decay: Annotated[float, typer.Option(help="AdamW's")] = 0.0,
    loss: Annotated[str, typer.Option(help="forward or reverse KL, or their mix")] = "forward",
    temperature: Annotated[float, typer.Option(help="of both distributions")] = 1.0,
    hidden_weight: Annotated[float, typer.Option(help="of the last hidden states' error")] = 0.0,
    top_k: Annotated[
        int, typer.Option(help="tokens kept of the teacher's answers; 0 asks it anew each step")
    ] = 64,
    cache: Annotated[str, typer.Option(help="most that kept answers may take")] = "4GB",
    evaluate_every: Annotated[int, typer.Option(help="steps between looks at held-out text")] = 50,
    patience: Annotated[int, typer.Option(help="looks without a gain; 0: never stop early")] = 5,
    precision: Annotated[str, typer.Option(help="bf16 or float32")] = "bf16",
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="less memory, more time")
    ] = False,
    seed: Annotated[int, typer.Option(help="of the windows' order")] = 0,
    json_: Json = False,
) -> None:
    """Teach a student what its teacher answers; on many processes by torchrun."""
    from coldpress import distill as stage
    from coldpress.demo import training_text

    options = stage.DistillOptions(
        tokens=tokens,
        text_tokens=text_tokens,
        layers=layers,
        context=context,
        batch_tokens=batch_tokens,
        accumulate=accumulate,
        rate=rate,
        weight_decay=weight_decay,
        loss=cast("Any", loss),
        temperature=temperature,
        hidden_weight=hidden_weight,
        top_k=top_k,
        cache=cache,
        evaluate_every=evaluate_every,
        patience=patience,
        precision=cast("Any", precision),
        checkpointing=checkpointing,
        seed=seed,
    )
    given = {"student": student, "against": against or ()}
    made = stage.distill(
        teacher, out, options, text=text or training_text.training_text(), **cast("Any", given)
    )
    if int(os.environ.get("RANK", "0")) == 0:
        print_result(made, json_)
