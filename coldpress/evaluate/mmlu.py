"""Ask MMLU-layout questions through lm-eval: its prompts, its few-shot sampling, its metrics.

Two scorings. ``continuation`` compares the likelihood of the four choices' texts after
"Question: …\\nAnswer:", as lm-eval's ``mmlu_continuation`` does (without its description line).
``letter`` is MMLU as published: the choices are listed and the likelihood of " A" … " D" compared.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, assert_never

from coldpress.errors import UsageError
from coldpress.evaluate.questions import LETTERS, Question, Subject
from coldpress.evaluate.quiet import quiet
from coldpress.evaluate.result import Accuracy

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.task import ConfigurableTask

Scoring = Literal["continuation", "letter"]


@dataclass(frozen=True)
class Sample:
    """One question's outcome; ``log_likelihoods`` in nats, one per choice."""

    scoring: str
    subject: str
    index: int
    log_likelihoods: tuple[float, ...]
    choice: int
    correct: bool


def ask(lm: "LM", subject: Subject, scoring: Scoring, num_fewshot: int) -> list[Sample]:
    """Ask every question of a subject; one sample per question, in file order."""
    with quiet():
        task = _task(subject, scoring, num_fewshot)
        asked = list(_requests(task, num_fewshot))
    answers = iter(lm.loglikelihood([request for question in asked for request in question]))
    samples = []
    for question, requests in zip(subject.test, asked, strict=True):
        replies = [next(answers) for _ in requests]
        hit = task.process_results(requests[0].doc, replies)["acc"]
        log_p = tuple(log_likelihood for log_likelihood, _ in replies)
        choice = max(range(len(log_p)), key=log_p.__getitem__)
        samples.append(Sample(scoring, subject.name, question.index, log_p, choice, bool(hit)))
    return samples


def accuracy(samples: Iterable[Sample]) -> Accuracy:
    """Over all questions (each counts the same, as MMLU is averaged), with lm-eval's pooled error."""
    from lm_eval.api.metrics import (
        aggregate_subtask_metrics,
        mean,
        mean_stderr,
        pooled_sample_stderr,
    )

    hits: dict[str, list[float]] = {}
    for sample in samples:
        hits.setdefault(sample.subject, []).append(float(sample.correct))
    sizes = [len(of) for of in hits.values()]
    means = {name: float(mean(of)) for name, of in hits.items()}
    # lm-eval's standard error of one question is undefined; it counts as none.
    errors = [mean_stderr(of) if len(of) > 1 else 0.0 for of in hits.values()]
    pooled = pooled_sample_stderr(errors, sizes) if sum(sizes) > len(sizes) else 0.0
    return Accuracy(
        accuracy=float(aggregate_subtask_metrics(list(means.values()), sizes)),
        stderr=float(pooled),
        n=sum(sizes),
        by_subject=means,
    )


def _task(subject: Subject, scoring: Scoring, num_fewshot: int) -> "ConfigurableTask":
    from datasets import Dataset, DatasetDict
    from lm_eval.api.task import ConfigurableTask

    if num_fewshot > len(subject.dev):
        raise UsageError(
            f"{subject.name} has {len(subject.dev)} examples, {num_fewshot} are asked for",
            f"lower the number of examples, or add rows to dev/{subject.name}_dev.csv",
        )
    splits = {"test": subject.test, "dev": subject.dev or subject.test[:1]}
    data = DatasetDict({name: Dataset.from_list(_rows(rows)) for name, rows in splits.items()})
    config: dict[str, Any] = {
        "task": f"{scoring}_{subject.name}",
        "custom_dataset": lambda **_: data,
        "test_split": "test",
        "fewshot_split": "dev",
        "fewshot_config": {"sampler": "first_n"},
        "num_fewshot": num_fewshot,
        "output_type": "multiple_choice",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "doc_to_target": _answer,
    }
    match scoring:
        case "continuation":
            config |= {"doc_to_text": _plain_prompt, "doc_to_choice": _texts}
        case "letter":
            config |= {
                "doc_to_text": _listed_prompt,
                "doc_to_choice": list(LETTERS),
                "description": "The following are multiple choice questions (with answers) "
                f"about {subject.title}.\n\n",
            }
        case _:
            assert_never(scoring)
    task = ConfigurableTask(config=config)
    task.set_fewshot_seed(0)
    return task


def _rows(questions: Iterable[Question]) -> list[dict[str, object]]:
    return [{"question": q.question, "choices": q.choices, "answer": q.answer} for q in questions]


def _requests(task: "ConfigurableTask", num_fewshot: int) -> Iterator[list["Instance"]]:
    """Each question's requests, one per choice."""
    for index, doc in task.doc_iterator():
        context = task.fewshot_context(doc, num_fewshot)
        yield task.construct_requests(doc, context, metadata=(task.task_name, index, 1))


# Functions rather than lm-eval's templates, which it compiles anew for every question.


def _plain_prompt(doc: dict[str, Any]) -> str:
    return f"Question: {doc['question'].strip()}\nAnswer:"


def _listed_prompt(doc: dict[str, Any]) -> str:
    lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, doc["choices"], strict=True)]
    return "\n".join([doc["question"].strip(), *lines, "Answer:"])


def _texts(doc: dict[str, Any]) -> list[str]:
    return list(doc["choices"])


def _answer(doc: dict[str, Any]) -> int:
    return int(doc["answer"])
