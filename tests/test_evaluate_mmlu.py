"""Questions are read as they stand and asked with lm-eval's own prompts and metrics."""

import random
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.utils import apply_template

from coldpress.errors import InputError, UsageError
from coldpress.evaluate import mmlu, questions
from coldpress.evaluate.questions import Question, Subject
from coldpress.evaluate.quiet import quiet

ROW = "What is 2 + 2?,3,4,None,22,B\n"


class _Guesser(LM):  # type: ignore[misc]
    """Answers by a number drawn from the request's text; notes what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, str]] = []

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        self.asked += [request.args for request in requests]
        return [(-random.Random(repr(each.args)).random(), False) for each in requests]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise NotImplementedError

    def generate_until(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError


def _folder(root: Path, test: str, dev: str = ROW, name: str = "sums") -> Path:
    for split, text in (("test", test), ("dev", dev)):
        (root / split).mkdir(exist_ok=True)
        (root / split / f"{name}_{split}.csv").write_text(text, encoding="utf-8")
    return root


def test_reads_both_layouts_alike(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (bare,) = questions.read(_folder(tmp_path / "a", ROW))
    header = "question,choice0,choice1,choice2,choice3,answer\nWhat is 2 + 2?,3,4,None,22,1\n"
    (headed,) = questions.read(_folder(tmp_path / "b", header))
    assert bare.test == headed.test
    assert bare.test == (Question(0, "What is 2 + 2?", ("3", "4", "None", "22"), 1),)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (ROW + "Only,three,cells\n", "line 2: 3 columns instead of 6"),
        (ROW + ROW.replace(",B", ",E"), "line 2: the answer is 'E'"),
        ('"open,1,2,3,4,A\n', "line 1"),
        ("", "is empty"),
        ("\x00,1,2,3,4,F\n", "line 1"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(InputError) as raised:
        questions.read(_folder(tmp_path, text))
    assert complaint in raised.value.message
    assert "sums_test.csv" in raised.value.message


def test_a_folder_without_questions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no questions"):
        questions.read(tmp_path)


def test_a_draw_is_the_same_each_time_and_keeps_the_order() -> None:
    every = tuple(Question(i, str(i), ("a", "b", "c", "d"), 0) for i in range(100))
    subject = Subject("sums", every, ())
    taken = questions.take(subject, 10, seed=3).test
    assert taken == questions.take(subject, 10, seed=3).test
    assert taken != questions.take(subject, 10, seed=4).test
    assert [each.index for each in taken] == sorted(each.index for each in taken)
    assert questions.take(subject, None, seed=3) == subject


def test_prompts_are_lm_evals_own(shared_data: Path) -> None:
    """Every prompt and choice equals what lm-eval's task files render for the same question."""
    (subject,) = (
        each for each in questions.read(shared_data / "mmlu") if each.name == "college_physics"
    )
    tasks = files("lm_eval") / "tasks" / "mmlu"
    default = _yaml(tasks / "default" / "_default_template_yaml")
    description = _yaml(tasks / "default" / "mmlu_college_physics.yaml")["description"]
    plain = _yaml(tasks / "continuation" / "_continuation_template_yaml")

    def render(template: str, question: Question) -> str:
        return str(apply_template(template, _document(question)))

    shots = "".join(
        render(default["doc_to_text"], each) + " " + "ABCD"[each.answer] + "\n\n"
        for each in subject.dev[:5]
    )
    letters, continued = _Guesser(), _Guesser()
    mmlu.ask(letters, subject, "letter", 5)
    mmlu.ask(continued, subject, "continuation", 0)
    expected_letters = [
        (description + shots + render(default["doc_to_text"], each), f" {letter}")
        for each in subject.test
        for letter in "ABCD"
    ]
    expected_continued = [
        (render(plain["doc_to_text"], each), f" {choice}")
        for each in subject.test
        for choice in each.choices
    ]
    assert letters.asked == expected_letters
    assert continued.asked == expected_continued
    assert "None" in {choice for each in subject.test for choice in each.choices}


def test_accuracy_is_lm_evals_own(shared_data: Path) -> None:
    """The numbers equal those of lm-eval's evaluator and group on the same tasks."""
    from lm_eval.api.group import AggMetricConfig, Group
    from lm_eval.evaluator import evaluate

    names = ("anatomy", "college_physics", "astronomy")
    subjects = [each for each in questions.read(shared_data / "mmlu") if each.name in names]
    samples = [s for each in subjects for s in mmlu.ask(_Guesser(), each, "letter", 2)]
    accuracy = mmlu.accuracy(samples)

    with quiet():
        tasks = {each.name: mmlu._task(each, "letter", 2) for each in subjects}
        group = Group("all", aggregate_metric_list=[AggMetricConfig(metric="acc")])
        for task in tasks.values():
            group.add(task)
        found = evaluate(
            _Guesser(),
            {"tasks": {t.task_name: t for t in tasks.values()}, "groups": {"all": group}},
            bootstrap_iters=0,
        )
    theirs = {name: found["results"][f"letter_{name}"]["acc,none"] for name in names}
    assert accuracy.by_subject == theirs
    assert accuracy.accuracy == pytest.approx(found["groups"]["all"]["acc,none"])
    assert accuracy.n == len(samples) == sum(len(each.test) for each in subjects)
    assert accuracy.accuracy == pytest.approx(sum(s.correct for s in samples) / len(samples))
    assert 0.01 < accuracy.stderr < 0.05


def test_too_few_examples_are_refused(tmp_path: Path) -> None:
    (subject,) = questions.read(_folder(tmp_path, ROW))
    with pytest.raises(UsageError, match="1 examples, 5 are asked for"):
        mmlu.ask(_Guesser(), subject, "letter", 5)


def _document(question: Question) -> dict[str, Any]:
    return {
        "question": question.question,
        "choices": list(question.choices),
        "answer": question.answer,
    }


def _yaml(path: Any) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded
