"""GGUF → ``evaluation.json``: questions, perplexity, KL divergence from the base, speed.

What is measured is the shipped file on llama.cpp's kernels, never a dequantized stand-in.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from coldpress import artifact, libllama
from coldpress.errors import UsageError
from coldpress.evaluate import result

KL_BASE = "kl-base.npz"

Profile = Literal["exact", "fast"]
Scoring = Literal["continuation", "letter"]


@dataclass(frozen=True)
class EvaluateOptions:
    """What to measure and how.

    Args:
        profile: ``exact`` (no flash attention, F32 KV cache) agrees with transformers' float32;
            ``fast`` is llama.cpp's default and about twice as fast. One for all that is compared.
        scoring: ``continuation`` compares the choices' texts with no example; ``letter`` is MMLU as
            published, the choices listed and their letters compared.
        num_fewshot: examples before each question of ``letter``.
        per_subject: questions per subject, drawn with ``seed``; all by default.
        letter_per_subject: the same for ``letter`` alone, whose prompts are longer.
        seed: draws the questions.
        n_ctx: tokens of the longest prompt; by default what the model was trained on, at most 4096.
        chunk_tokens: perplexity's chunk length.
        n_chunks: chunks of the text to score; all by default.
        kl_top_k: most likely tokens kept per position of the base's distributions; see ``kl``.
        tasks: lm-eval tasks, groups or tags by name, beside the questions.
        task_fewshot: examples of those; by default what each task says.
        task_limit: documents of each of those.
        chat: render those with the GGUF's chat template.
        student: what a pruned or taught model is called before its file's own name; a series of its own.
        threads: CPU threads; all cores by default.
        speed: whether to measure speed, load time and peak memory.
        speed_repeats: times each rate is taken; the median counts.
        speed_threads: thread counts of a grid of rates; ``threads`` if only contexts are given.
        speed_contexts: its context lengths in tokens; the usual prompt's if only threads are given.
            No grid by default.
    """

    profile: Profile = "exact"
    scoring: tuple[Scoring, ...] = ("continuation", "letter")
    num_fewshot: int = 5
    per_subject: int | None = None
    letter_per_subject: int | None = None
    seed: int = 0
    n_ctx: int | None = None
    chunk_tokens: int = 512
    n_chunks: int | None = None
    kl_top_k: int = 64
    tasks: tuple[str, ...] = ()
    task_fewshot: int | None = None
    task_limit: int | None = None
    chat: bool = False
    student: str | None = None
    threads: int | None = None
    speed: bool = True
    speed_repeats: int = 3
    speed_threads: tuple[int, ...] = ()
    speed_contexts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check_name("profile", self.profile, get_args(Profile))
        for scoring in self.scoring:
            _check_name("scoring", scoring, get_args(Scoring))
        if self.num_fewshot < 0:
            raise UsageError(f"num_fewshot is {self.num_fewshot}", "0 or more")
        at_least = {"per_subject": 1, "letter_per_subject": 1, "n_ctx": 1, "chunk_tokens": 8}
        at_least |= {
            "task_fewshot": 0,
            "task_limit": 1,
            "n_chunks": 1,
            "kl_top_k": 1,
            "threads": 1,
            "speed_repeats": 1,
        }
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{name} is {value}", f"{least} or more")
        for name in ("speed_threads", "speed_contexts"):
            if any(value < 1 for value in getattr(self, name)):
                raise UsageError(f"{name} has {min(getattr(self, name))}", "1 or more")


@dataclass(frozen=True)
class Evaluated:
    """The headline of an evaluation; ``path`` is its JSON. None: not asked for."""

    path: str
    name: str
    size_bytes: int
    bits_per_weight: float
    accuracy: float | None
    letter_accuracy: float | None
    perplexity: float | None
    kl_nats: float | None
    generate_tok_per_s: float | None


def plan(
    gguf: Path,
    out: Path,
    options: EvaluateOptions,
    *,
    questions: Path | None = None,
    text: Path | None = None,
    base: Path | None = None,
    definitions: Path | None = None,
) -> tuple[dict[str, Path], dict[str, object]]:
    """What an evaluation depends on: (inputs, resolved options)."""
    given = {"gguf": gguf, "questions": questions, "text": text, "definitions": definitions}
    inputs = {role: path for role, path in given.items() if path is not None}
    if base is not None:
        # The distributions alone: the base's speed differs from run to run and matters to none.
        inputs["base"] = base / KL_BASE if base.is_dir() else base
    resolved: dict[str, object] = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asdict(options).items()
    }
    return inputs, resolved | {"runtime": f"llama-cpp-python {libllama.version()}"}


def evaluate(
    gguf: Path,
    out: Path,
    options: EvaluateOptions,
    *,
    questions: Path | None = None,
    text: Path | None = None,
    base: Path | None = None,
    definitions: Path | None = None,
) -> Evaluated:
    """Measure a GGUF and write the artifact ``out``: ``evaluation.json`` and ``samples.jsonl``.

    Args:
        gguf: a GGUF file, or an artifact that holds ``model.gguf``.
        questions: a folder in MMLU's layout.
        text: a text that the model was not calibrated on, for perplexity and KL divergence.
        base: the base model's evaluation, to compare with. Without it this model is the base, and
            ``kl-base.npz`` is written.
        definitions: a folder of lm-eval task files, beside lm-eval's own.

    A killed evaluation goes on with the subjects not yet asked.

    Raises:
        InputError: a file is missing or not what it should be.
        UsageError: there is no such task; the GGUF has no chat template to ask with; the base was
            evaluated under other conditions.
        PromptTooLongError: a question with its examples exceeds the context; nothing is ever cut.
    """
    from coldpress.evaluate import measure, resume

    given = {"questions": questions, "text": text, "definitions": definitions}
    inputs, resolved = plan(gguf, out, options, base=base, **given)
    tools = {"llama-cpp-python": libllama.version()}
    if questions is not None or options.tasks:
        from importlib.metadata import version

        tools["lm-eval"] = version("lm-eval")
    with artifact.create(out, "evaluate", inputs=inputs, options=resolved, tools=tools) as draft:
        answers = resume.Answers(out, _answers_key(inputs, resolved))
        evaluation = measure.measure(
            gguf, draft.folder, options, answers, base=inputs.get("base"), **given
        )
        result.write(evaluation, draft.folder / result.FILE)
    answers.forget()
    return _headline(evaluation, out)


def _answers_key(inputs: dict[str, Path], resolved: dict[str, object]) -> dict[str, object]:
    """What the answers to questions depend on; not the text, the base or what speed is taken of."""
    names = ("profile", "num_fewshot", "per_subject", "letter_per_subject", "seed", "n_ctx")
    return {
        "code": artifact.code_digest("evaluate"),
        "runtime": resolved["runtime"],
        **{
            role: artifact.digest_of(inputs[role])
            for role in ("gguf", "questions")
            if role in inputs
        },
        **{name: resolved[name] for name in names},
    }


def _headline(evaluation: result.Evaluation, out: Path) -> Evaluated:
    questions, speed = evaluation.questions, evaluation.speed
    accuracy = {scoring: each.accuracy for scoring, each in questions.items()}
    return Evaluated(
        path=str(out / result.FILE),
        name=evaluation.name,
        size_bytes=evaluation.size_bytes,
        bits_per_weight=evaluation.bits_per_weight,
        accuracy=accuracy.get("continuation"),
        letter_accuracy=accuracy.get("letter"),
        perplexity=evaluation.perplexity.value if evaluation.perplexity else None,
        kl_nats=evaluation.kl.mean if evaluation.kl else None,
        generate_tok_per_s=speed.generate_tok_per_s if speed else None,
    )


def _check_name(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"no {option} {value!r}", f"one of: {', '.join(known)}")
