"""The commands: one per stage, each a single call. Words for people go to stderr, the result to stdout."""

import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from coldpress import (
    cli_deploy,
    cli_distill,
    cli_image,
    cli_plan,
    cli_prune,
    cli_runs,
    cli_serve,
    cli_sign,
)
from coldpress.cli_output import Json, Out, print_result
from coldpress.errors import ColdpressError, UsageError

app = typer.Typer(
    name="coldpress",
    help="Make language models small, and make them start cold in seconds where there is no GPU.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(cli_runs.app, name="runs")
app.add_typer(cli_serve.app)
app.add_typer(cli_image.app)
app.add_typer(cli_sign.app)
app.add_typer(cli_plan.app)
app.add_typer(cli_prune.app)
app.add_typer(cli_distill.app)
app.add_typer(cli_deploy.app)

Store = Annotated[
    Path | None,
    typer.Option("--store", envvar="COLDPRESS_RUNS", help="run store; default: .store beside OUT"),
]
Text = Annotated[Path | None, typer.Option(help="plain text file; default: the embedded text")]


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="a YAML file; see recipes/")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="default: runs/NAME")] = None,
    store: Store = None,
    json_: Json = False,
) -> None:
    """Run every stage of a recipe; what is done is reused."""
    from coldpress import pipeline, runs, summary
    from coldpress.recipe import load

    loaded = load(recipe)
    try:
        ran = pipeline.run(loaded, recipe.parent, out or Path("runs") / loaded.name)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        raise typer.Exit(130) from None
    cli_runs.remember(runs.of_run(loaded, ran), store or runs.beside(ran.out))
    print_result(ran, json_, summary.text(ran))


@app.command()
def convert(
    model: Annotated[str, typer.Argument(help="Hugging Face folder or id")],
    out: Out,
    outtype: Annotated[str, typer.Option(help="bf16, f16 or f32")] = "bf16",
    pre_tokenizer: Annotated[str | None, typer.Option(help="llama.cpp's name for it")] = None,
    llama_cpp: Annotated[Path | None, typer.Option(help="a llama.cpp source tree")] = None,
    revision: Annotated[str | None, typer.Option(help="branch, tag or commit of an id")] = None,
    json_: Json = False,
) -> None:
    """Convert a Hugging Face model to GGUF and prove it equal."""
    from coldpress import convert as stage

    options = stage.ConvertOptions(
        outtype=outtype,  # type: ignore[arg-type]  # checked by the options themselves
        pre_tokenizer=pre_tokenizer,
        llama_cpp=str(llama_cpp) if llama_cpp else None,
        revision=revision,
    )
    print_result(stage.convert(model, out, options), json_)


@app.command()
def calibrate(
    model: Annotated[Path, typer.Argument(help="Hugging Face folder")],
    out: Out,
    text: Text = None,
    context: Annotated[int, typer.Option(help="tokens per sequence")] = 512,
    max_tokens: Annotated[int, typer.Option(help="tokens in all")] = 65536,
    against: Annotated[
        list[Path] | None, typer.Option(help="text to evaluate on: refused as --text; repeatable")
    ] = None,
    json_: Json = False,
) -> None:
    """Measure which weights matter: an imatrix and second moments from text."""
    from coldpress import calibrate as stage
    from coldpress import demo

    options = stage.CalibrateOptions(context=context, max_tokens=max_tokens)
    given = text or demo.CALIBRATION_TEXT
    print_result(stage.calibrate(model, out, options, text=given, against=against or ()), json_)


@app.command()
def quantize(
    gguf: Annotated[Path, typer.Argument(help="bf16 GGUF, or the folder that convert wrote")],
    out: Out,
    type_: Annotated[
        str | None, typer.Option("--type", help="ggml type or llama.cpp preset; default: Q4_K_M")
    ] = None,
    size: Annotated[str | None, typer.Option(help="budget for the file: 1.9GB, 700MiB")] = None,
    bpw: Annotated[float | None, typer.Option(help="budget in bits per weight")] = None,
    fit: Annotated[
        str | None, typer.Option(help="budget from memory: lambda:3008MB, cloudrun:2GiB")
    ] = None,
    sweep: Annotated[str | None, typer.Option(help="several budgets: 2.5,3,4")] = None,
    min_tok_s: Annotated[float | None, typer.Option(help="fewest tokens per second here")] = None,
    context: Annotated[int | None, typer.Option(help="tokens of KV cache that --fit keeps")] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="folder from calibrate, or an imatrix.gguf")
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Hugging Face folder, for a budget")] = None,
    rounding: Annotated[str | None, typer.Option(help="compensated or imatrix")] = None,
    heal: Annotated[bool, typer.Option(help="train what the file stores, on own text")] = False,
    teach: Annotated[
        str | None, typer.Option(help="or on so many tokens of --text: 2M; see docs/distilling.md")
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="who answers them; default: the model itself")
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="to teach: files, a folder, or a data set's name")
    ] = None,
    against: Annotated[
        list[Path] | None, typer.Option(help="text to evaluate on: refused as --text; repeatable")
    ] = None,
    format_: Annotated[str, typer.Option("--format", help="gguf or gptq")] = "gguf",
    bits: Annotated[int, typer.Option(help="of a GPTQ checkpoint: 2, 3, 4 or 8")] = 4,
    method: Annotated[str | None, typer.Option(help="accepted: auto-gptq")] = None,
    json_: Json = False,
) -> None:
    """Write a smaller GGUF: of one type, or the best that a budget allows."""
    from coldpress import quantize as stage

    if _wants_gptq(format_, method):
        print_result(_gptq(model or gguf, out, bits, calibration), json_)
        return
    given: Any = {"calibration": calibration, "model": model, "teacher": teacher, "text": text}
    given["against"] = against or ()
    options = stage.QuantizeOptions(
        type=type_,
        size=size,
        bpw=bpw,
        fit=fit,
        context=context,
        min_tok_s=min_tok_s,
        rounding=rounding,  # type: ignore[arg-type]  # checked by the options themselves
        heal=heal,
        teach=teach,
    )
    for folder, each in stage.sweep(out, options, sweep).items():
        print_result(stage.quantize(gguf, folder, each, **given), json_)


def _wants_gptq(format_: str, method: str | None) -> bool:
    """Whether a GPTQ checkpoint is asked for, by the format or by the old library's name."""
    from coldpress import gptq
    from coldpress.progress import note

    if method is not None and not gptq.is_auto_gptq(method):
        raise UsageError(f"no method {method!r}", "leave it out, or auto-gptq")
    if format_ not in ("gguf", "gptq"):
        raise UsageError(f"no format {format_!r}", "gguf or gptq")
    if method is not None:
        note(f"  note: {gptq.REPLACED}")
    return format_ == "gptq" or method is not None


def _gptq(model: Path, out: Path, bits: int, calibration: Path | None) -> Any:
    from coldpress import gptq

    if calibration is None:
        raise UsageError(
            "GPTQ needs second moments of the model's inputs",
            "make them with `coldpress calibrate` and give its folder with --calibration",
        )
    options = gptq.GptqOptions(bits=bits)
    return gptq.checkpoint(model, out, options, calibration=calibration)


@app.command()
def inspect(
    gguf: Annotated[Path, typer.Argument(help="a GGUF, or a folder with model.gguf")],
    json_: Json = False,
) -> None:
    """List a GGUF's tensors: type, bytes, bits per weight, error."""
    from coldpress import inspect as inspection

    inspected = inspection.inspect(gguf)
    if not json_:
        inspection.show(inspected)
        return
    print_result(inspected, json_)


@app.command()
def evaluate(
    gguf: Annotated[Path, typer.Argument(help="the GGUF that will be shipped")],
    out: Out,
    questions: Annotated[
        str | None, typer.Option(help="folder of MMLU-layout CSV files, or a hub id: cais/mmlu")
    ] = None,
    text: Text = None,
    base: Annotated[Path | None, typer.Option(help="evaluation of the bf16 file")] = None,
    task: Annotated[list[str] | None, typer.Option(help="lm-eval task, group or tag")] = None,
    task_folder: Annotated[Path | None, typer.Option(help="lm-eval task files of your own")] = None,
    task_limit: Annotated[int | None, typer.Option(help="documents of each task")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="ask tasks by the chat template")] = False,
    profile: Annotated[str, typer.Option(help="exact, as transformers; or fast")] = "exact",
    scoring: Annotated[
        list[str] | None,
        typer.Option(help="letter, MMLU as published; continuation; both by default"),
    ] = None,
    num_fewshot: Annotated[int, typer.Option(help="examples before each question, by letter")] = 5,
    per_subject: Annotated[int | None, typer.Option(help="questions drawn per subject")] = None,
    n_ctx: Annotated[int | None, typer.Option(help="tokens of the longest prompt")] = None,
    speed_threads: Annotated[
        list[int] | None, typer.Option(help="measure speed with so many threads; repeatable")
    ] = None,
    speed_contexts: Annotated[
        list[int] | None, typer.Option(help="and after so many tokens; repeatable")
    ] = None,
    store: Store = None,
    json_: Json = False,
) -> None:
    """Measure a GGUF: questions, lm-eval tasks, perplexity, KL against bf16, speed."""
    from coldpress import demo, runs
    from coldpress import evaluate as stage
    from coldpress.evaluate import hub_questions

    default = stage.EvaluateOptions()
    options = stage.EvaluateOptions(
        profile=cast("Any", profile),
        scoring=cast("Any", tuple(scoring or default.scoring)),
        speed_threads=tuple(speed_threads or ()),
        speed_contexts=tuple(speed_contexts or ()),
        num_fewshot=num_fewshot,
        per_subject=per_subject,
        n_ctx=n_ctx,
        tasks=tuple(task or ()),
        task_limit=task_limit,
        chat=chat,
    )
    asked = None if questions is None else hub_questions.resolve(questions)
    given = {"questions": asked, "text": text or demo.HELDOUT_TEXT, "base": base}
    evaluated = stage.evaluate(gguf, out, options, definitions=task_folder, **given)
    cli_runs.remember(runs.of_evaluation(gguf, out), store or runs.beside(out))
    print_result(evaluated, json_)


@app.command()
def report(
    evaluations: Annotated[list[Path], typer.Argument(help="folders that evaluate wrote")],
    out: Out,
    title: Annotated[str, typer.Option(help="heading of the page")] = "Comparison",
    json_: Json = False,
) -> None:
    """Compare evaluations on one page."""
    from coldpress import report as stage

    print_result(stage.report(evaluations, out, stage.ReportOptions(title=title)), json_)


@app.command()
def gate(
    run: Annotated[Path, typer.Argument(help="folder of a report, a run or an evaluation")],
    max_kl: Annotated[float | None, typer.Option(help="nats per token from the base")] = None,
    max_mmlu_drop: Annotated[
        float | None, typer.Option(help="points of accuracy below the base, same questions")
    ] = None,
    max_size: Annotated[str | None, typer.Option(help="of the file: 1.9GB, 700MiB")] = None,
    min_tok_s: Annotated[float | None, typer.Option(help="generated tokens per second")] = None,
    max_perplexity_ratio: Annotated[float | None, typer.Option(help="over the base's")] = None,
    only: Annotated[list[str] | None, typer.Option(help="a row's name; repeatable")] = None,
    json_: Json = False,
) -> None:
    """Hold the shipped or recommended file against limits; exit 3 when one is broken."""
    from coldpress.report import gate as stage

    limits = stage.Limits(max_kl, max_mmlu_drop, max_size, min_tok_s, max_perplexity_ratio)
    gated = stage.check(run, limits, only or ())
    print("\n".join(stage.lines(gated)), file=sys.stderr)
    if json_:
        print_result(gated, json_)
    stage.enforce(gated)


@app.command()
def checkpoint(
    gguf: Annotated[Path, typer.Argument(help="a GGUF, a first shard, or a folder with either")],
    out: Out,
    shards: Annotated[int | None, typer.Option(help="files; the first: metadata alone")] = None,
    shard_size: Annotated[str | None, typer.Option(help="most data per shard: 2GB")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="the way back: one plain GGUF")] = False,
    json_: Json = False,
) -> None:
    """Lay a GGUF out for a cold start, with a digest per chunk; or undo it."""
    from coldpress import checkpoint as stage
    from coldpress.quantize.budget import parse_size

    if plain and (shards is not None or shard_size is not None):
        raise UsageError("a plain GGUF is one file", "leave --plain or the shards out")
    if plain:
        print_result(stage.plain(gguf, out), json_)
        return
    size = None if shard_size is None else parse_size(shard_size)
    options = stage.CheckpointOptions(shards=shards, shard_bytes=size)
    print_result(stage.checkpoint(gguf, out, options), json_)


@app.command()
def index(
    folder: Annotated[Path, typer.Argument(help="a folder with safetensors files")],
    json_: Json = False,
) -> None:
    """Write a digest per chunk beside safetensors files, which stay as they are."""
    from coldpress.checkpoint.safetensors_folder import index_folder

    print_result(index_folder(folder), json_)


def version(value: bool) -> None:
    """Print the version and stop."""
    if value:
        from coldpress import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Options before the command."""


def main() -> None:
    """Run a command; a user's error is two lines and its own exit code, never a traceback."""
    try:
        app(standalone_mode=True)
    except ColdpressError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f" hint: {error.hint}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(1)


if __name__ == "__main__":
    main()
