"""Every measurement of one GGUF, in order, with the conditions they were taken under."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from coldpress import artifact, libllama, progress
from coldpress.errors import InputError
from coldpress.evaluate import kl, perplexity, questions, result, speed
from coldpress.evaluate.describe import cpu_model, describe
from coldpress.evaluate.mmlu import Sample
from coldpress.evaluate.questions import Subject
from coldpress.evaluate.resume import Answers
from coldpress.evaluate.session import MAX_SEQUENCES, Model, open_context, open_model
from coldpress.evaluate.stage import KL_BASE, EvaluateOptions, Scoring

if TYPE_CHECKING:
    from coldpress.evaluate.libllama_lm import LibllamaLM

SAMPLES = "samples.jsonl"
_KV_SPARE = 256  # cells beside the longest prompt, for the other questions of its group
_MAX_DEFAULT_N_CTX = 4096
_SPEED_PROMPT_TOKENS = 512
_SPEED_GENERATED_TOKENS = 64

Asked = Mapping[Scoring, tuple[Subject, ...]]


def measure(
    gguf: Path,
    folder: Path,
    options: EvaluateOptions,
    answers: Answers,
    *,
    questions: Path | None,
    text: Path | None,
    definitions: Path | None,
    base: Path | None,
) -> result.Evaluation:
    """Measure what is asked for; samples and a base's distributions are written to ``folder``.

    ``answers`` are those of an evaluation that was interrupted, and get each subject's when it is done.
    """
    file = gguf / "model.gguf" if gguf.is_dir() else gguf
    threads = options.threads or len(os.sched_getaffinity(0))
    asked = _asked(questions, options)
    with open_model(file) as model:
        n_ctx = options.n_ctx or min(model.n_ctx_train, _MAX_DEFAULT_N_CTX)
        with _language_model(model, n_ctx, threads, options) as lm:
            accuracy, samples = _ask(lm, asked, options, answers)
            tasks = _tasks(lm, gguf.name, folder, definitions, options)
        scored = None if text is None else _score(model, text, base, threads, options)
        name, kind, method = describe(gguf, model, options.student)
        n_params, vocabulary_digest = model.n_params, model.vocabulary_digest()
    _write_samples(samples, folder / SAMPLES)
    if scored is not None and scored.base is not None:
        kl.write(scored.base, folder / KL_BASE)
    size_bytes = file.stat().st_size
    return result.Evaluation(
        name=name,
        model=gguf.name,
        type=kind,
        method=method,
        size_bytes=size_bytes,
        n_params=n_params,
        bits_per_weight=8 * size_bytes / n_params,
        profile=options.profile,
        questions=accuracy,
        tasks=tasks,
        perplexity=None if scored is None else scored.perplexity,
        kl=None if scored is None else scored.kl,
        speed=_speed(file, threads, options) if options.speed else None,
        conditions=result.Conditions(
            n_ctx=n_ctx,
            threads=threads,
            num_fewshot=options.num_fewshot,
            llama_cpp_python=libllama.version(),
            cpu=cpu_model(),
            cpu_backend=libllama.cpu_variant(),
            questions_digest=_questions_digest(asked, options) if asked else None,
            text_digest=None if text is None else _text_digest(text, options),
            vocabulary_digest=vocabulary_digest,
        ),
    )


def _speed(file: Path, threads: int, options: EvaluateOptions) -> result.Speed:
    grid = product(
        options.speed_threads or (threads,), options.speed_contexts or (_SPEED_PROMPT_TOKENS,)
    )
    asked = bool(options.speed_threads or options.speed_contexts)
    return speed.measure(
        file,
        threads=threads,
        profile=options.profile,
        n_prompt=_SPEED_PROMPT_TOKENS,
        n_generate=_SPEED_GENERATED_TOKENS,
        repeats=options.speed_repeats,
        grid=tuple(grid) if asked else (),
    )


def _asked(folder: Path | None, options: EvaluateOptions) -> Asked:
    """The subjects to ask by scoring, each cut to the questions that are asked for."""
    if folder is None:
        return {}
    subjects = questions.read(folder)
    limits = {"continuation": options.per_subject, "letter": options.per_subject}
    if options.letter_per_subject is not None:
        limits["letter"] = options.letter_per_subject
    return {
        scoring: tuple(questions.take(each, limits[scoring], options.seed) for each in subjects)
        for scoring in options.scoring
    }


@contextmanager
def _language_model(
    model: Model, n_ctx: int, threads: int, options: EvaluateOptions
) -> Iterator["LibllamaLM"]:
    from coldpress.evaluate.libllama_lm import LibllamaLM

    with open_context(
        model,
        n_cells=n_ctx + _KV_SPARE,
        threads=threads,
        profile=options.profile,
        n_sequences=MAX_SEQUENCES,
    ) as context:
        yield LibllamaLM(model, context, n_ctx)


def _ask(
    lm: "LibllamaLM", asked: Asked, options: EvaluateOptions, answers: Answers
) -> tuple[dict[str, result.Accuracy], list[Sample]]:
    """Ask subject by subject, those without an answer yet."""
    if not asked:
        return {}, []
    from coldpress.evaluate import mmlu

    accuracy: dict[str, result.Accuracy] = {}
    samples: list[Sample] = []
    total = sum(len(subject.test) for subjects in asked.values() for subject in subjects)
    with progress.task("questions", total) as tick:
        for scoring, subjects in asked.items():
            shots = options.num_fewshot if scoring == "letter" else 0
            of_scoring: list[Sample] = []
            for subject in subjects:
                given = answers.get(scoring, subject.name)
                if given is None:
                    given = mmlu.ask(lm, subject, scoring, shots)
                    answers.put(scoring, subject.name, given)
                of_scoring += given
                tick(len(given))
            accuracy[scoring] = mmlu.accuracy(of_scoring)
            samples += of_scoring
    return accuracy, samples


def _tasks(
    lm: "LibllamaLM", name: str, folder: Path, definitions: Path | None, options: EvaluateOptions
) -> dict[str, result.TaskResult]:
    if not options.tasks:
        return {}
    from coldpress.evaluate import tasks

    lm.shows_progress = True
    return tasks.run(
        lm,
        options.tasks,
        folder,
        model_name=name,
        definitions=definitions,
        num_fewshot=options.task_fewshot,
        limit=options.task_limit,
        chat=options.chat,
    )


def _score(
    model: Model, text: Path, base: Path | None, threads: int, options: EvaluateOptions
) -> perplexity.Scored:
    try:
        words = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{text} is not a readable UTF-8 text", "give a plain text") from error
    chunks = perplexity.chunks(model, words, options.chunk_tokens, options.n_chunks)
    with open_context(
        model, n_cells=options.chunk_tokens, threads=threads, profile=options.profile
    ) as context:
        return perplexity.score(
            model,
            context,
            chunks,
            base=None if base is None else kl.read(base),
            top_k=options.kl_top_k,
            profile=options.profile,
        )


def _questions_digest(asked: Asked, options: EvaluateOptions) -> str:
    """Equal where the same questions are asked with the same examples."""
    subjects = {scoring: [asdict(each) for each in of] for scoring, of in asked.items()}
    return artifact.sha256_json([subjects, options.num_fewshot])


def _text_digest(text: Path, options: EvaluateOptions) -> str:
    """Equal where the same part of the same text is scored in the same chunks."""
    return artifact.sha256_json(
        [artifact.sha256_file(text), options.chunk_tokens, options.n_chunks]
    )


def _write_samples(samples: Sequence[Sample], path: Path) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for sample in samples:
            stream.write(json.dumps(asdict(sample), ensure_ascii=False) + "\n")
