"""lm-eval tasks by name on libllama, held against lm-eval's own model on transformers."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coldpress.errors import InputError, UsageError
from coldpress.evaluate import EvaluateOptions, evaluate, mmlu, questions, result
from coldpress.evaluate.libllama_lm import LibllamaLM
from coldpress.evaluate.quiet import quiet
from coldpress.evaluate.session import open_context, open_model

_TASK = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
num_fewshot: 0
"""
_CHOICES = """
task: cp_choices
output_type: multiple_choice
doc_to_text: "{{question}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
_WORDS = """
task: cp_words
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{target}}"
generation_kwargs: {until: ["."], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
_ROLLING = """
task: cp_rolling
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{story}}"
metric_list: [{metric: bits_per_byte}]
"""
OPTIONS = EvaluateOptions(scoring=(), speed=False, threads=2, n_chunks=1)


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> tuple[Path, Path]:
    """A trained model's folder and its F32 GGUF."""
    from coldpress.convert import ConvertOptions, convert

    folder, work = shared_data / "models" / "stories260K", tmp_path_factory.mktemp("stories")
    convert(folder, work / "gguf", ConvertOptions(outtype="f32", verify=False))
    return folder, work / "gguf"


@pytest.fixture(scope="module")
def definitions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks of a team's own, one per kind of request."""
    folder = tmp_path_factory.mktemp("tasks")
    animals = ("cat", "dog", "bird", "frog", "bear")
    documents = [
        {
            "question": f"Once upon a time there was a little {animal}. It liked to",
            "choices": ["play", "compute", "run", "the"],
            "answer": i % 4,
            "target": "play with its friends",
            "story": f"The {animal} was very happy. It had a big red ball." * 3,
        }
        for i, animal in enumerate(animals)
    ]
    (folder / "documents.json").write_text("\n".join(map(json.dumps, documents)))
    common = _TASK.format(data=folder / "documents.json")
    for name, text in (("choices", _CHOICES), ("words", _WORDS), ("rolling", _ROLLING)):
        (folder / f"{name}.yaml").write_text(common + text)
    return folder


@pytest.fixture(scope="module")
def transformers_lm(stories: tuple[Path, Path]) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(stories[0]), device="cpu", dtype="float32", batch_size=1)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    cache = str(tmp_path_factory.mktemp("datasets"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)


def test_metrics_are_those_of_transformers(
    stories: tuple[Path, Path], definitions: Path, transformers_lm: Any, tmp_path: Path
) -> None:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    names = ("cp_choices", "cp_words", "cp_rolling")
    out = tmp_path / "e"
    evaluate(stories[1], out, replace(OPTIONS, tasks=names), definitions=definitions)
    read = result.read(out)
    with quiet():
        expected: Any = simple_evaluate(
            model=transformers_lm,
            tasks=list(names),
            task_manager=TaskManager(include_path=str(definitions)),
            bootstrap_iters=0,
        )
    for name in names:
        ours, theirs = read.tasks[name].metrics, expected["results"][name]
        key = {"cp_choices": "acc,none", "cp_words": "exact_match,none"}.get(
            name, "bits_per_byte,none"
        )
        assert ours[key] == pytest.approx(theirs[key], rel=1e-5)
        assert read.tasks[name].n == 5
    # In lm-eval's own file names and fields, which its viewers look for.
    (results,) = (out / "lm-eval").rglob("results_*.json")
    assert json.loads(results.read_text())["results"]["cp_choices"]["alias"] == "cp_choices"
    (samples,) = (out / "lm-eval").rglob("samples_cp_words_*.jsonl")
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    theirs = [each["resps"] for each in expected["samples"]["cp_words"]]
    assert [each["resps"] for each in lines] == theirs


def test_200_real_mmlu_questions_are_answered_as_by_transformers(
    stories: tuple[Path, Path], transformers_lm: Any, shared_data: Path
) -> None:
    def short(subject: questions.Subject) -> questions.Subject:
        """Four questions that fit into the 512 tokens that the model was trained on."""
        fitting = [q for q in subject.test if len(q.question) + sum(map(len, q.choices)) < 400]
        return replace(subject, test=tuple(fitting[:4]))

    subjects = [short(each) for each in questions.read(shared_data / "mmlu")]
    subjects = [each for each in subjects if len(each.test) == 4][:50]
    assert sum(len(each.test) for each in subjects) == 200
    with (
        open_model(stories[1] / "model.gguf") as model,
        open_context(model, n_cells=1024, threads=2, n_sequences=256) as context,
    ):
        lm = LibllamaLM(model, context, n_ctx=512)
        ours = [s for each in subjects for s in mmlu.ask(lm, each, "letter", 0)]
    theirs = [s for each in subjects for s in mmlu.ask(transformers_lm, each, "letter", 0)]
    assert [s.correct for s in ours] == [s.correct for s in theirs]
    for mine, its in zip(ours, theirs, strict=True):
        # 1e-5, or what float32 leaves of it: the worst of the 800 differs by 1.1e-5 of 2.96.
        assert mine.log_likelihoods == pytest.approx(its.log_likelihoods, abs=1e-5, rel=5e-6)


def test_what_cannot_be_asked_is_refused(
    stories: tuple[Path, Path], definitions: Path, tmp_path: Path
) -> None:
    out = tmp_path / "e"
    with pytest.raises(UsageError, match="no task 'cp_choice'") as raised:
        evaluate(stories[1], out, replace(OPTIONS, tasks=("cp_choice",)), definitions=definitions)
    assert "cp_choices" in raised.value.hint
    with pytest.raises(UsageError, match="no chat template"):
        chat = replace(OPTIONS, tasks=("cp_words",), chat=True)
        evaluate(stories[1], out, chat, definitions=definitions)
    (definitions / "documents.json").rename(definitions / "elsewhere.json")
    try:
        with pytest.raises(InputError, match="cp_words"):
            evaluate(
                stories[1], out, replace(OPTIONS, tasks=("cp_words",)), definitions=definitions
            )
    finally:
        (definitions / "elsewhere.json").rename(definitions / "documents.json")
    assert list(tmp_path.iterdir()) == []


def test_chat_is_what_the_runtime_renders(stories: tuple[Path, Path]) -> None:
    from coldpress.serve.api.template import render

    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<a>{% endif %}"
    )
    with open_model(stories[1] / "model.gguf") as model:
        model.chat_template = template
        with open_context(model, n_cells=64, threads=1) as context:
            lm = LibllamaLM(model, context, n_ctx=64)
            history = [{"role": "user", "content": "Hi"}]
            assert lm.apply_chat_template(history) == "<user>Hi<a>"
            assert lm.apply_chat_template(history, add_generation_prompt=False) == "<user>Hi"
            assert lm.apply_chat_template(history) == render(
                template, tuple(history), bos="", eos=""
            )


@pytest.mark.parametrize("times", [1, 2])
def test_a_killed_evaluation_goes_on_where_it_was(
    random_gguf: Path, tmp_path: Path, times: int
) -> None:
    rows = "What is one?,1,2,3,None,A\nWhat is two?,1,2,3,4,B\n" * 20
    for split in ("test", "dev"):
        (tmp_path / "questions" / split).mkdir(parents=True)
        for subject in range(12):
            file = tmp_path / "questions" / split / f"sums_{subject:02}_{split}.csv"
            file.write_text(rows.replace("What", f"({subject}) What"))
    program = (
        "import sys, time\nfrom pathlib import Path\n"
        "from coldpress.evaluate import EvaluateOptions, evaluate, mmlu\n"
        "gguf, out, questions = map(Path, sys.argv[1:])\n"
        "ask = mmlu.ask\n"
        "def slowly(*given):\n    print(given[1].name, flush=True)\n    time.sleep(0.3)\n"
        "    return ask(*given)\n"
        "mmlu.ask = slowly\n"
        "options = EvaluateOptions(scoring=('continuation',), speed=False, threads=1)\n"
        "evaluate(gguf, out, options, questions=questions)\n"
    )
    argv = [sys.executable, "-c", program, random_gguf, tmp_path / "e", tmp_path / "questions"]
    asked: list[str] = []
    for _ in range(times):
        process = subprocess.Popen([*map(str, argv)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        asked += [process.stdout.readline().strip() for _ in range(3)]
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert not (tmp_path / "e").exists()
    done = subprocess.run([*map(str, argv)], capture_output=True, text=True, check=True)
    asked += done.stdout.split()
    every = [f"sums_{subject:02}" for subject in range(12)]
    # Only the subject that was being asked when the process was killed is asked again.
    assert sorted(set(asked)) == every
    assert len(asked) <= 12 + times
    assert not list(tmp_path.glob("e.answers*"))
    whole = EvaluateOptions(scoring=("continuation",), speed=False, threads=1)
    evaluate(random_gguf, tmp_path / "whole", whole, questions=tmp_path / "questions")
    samples = [(tmp_path / name / "samples.jsonl").read_bytes() for name in ("e", "whole")]
    assert samples[0] == samples[1]
