"""Any lm-eval task by name, with results and samples in lm-eval's own files."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coldpress.errors import ColdpressError, InputError, UsageError
from coldpress.evaluate.quiet import quiet
from coldpress.evaluate.result import TaskResult

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

    from coldpress.evaluate.libllama_lm import LibllamaLM

FOLDER = "lm-eval"


def run(
    lm: "LibllamaLM",
    names: Sequence[str],
    out: Path,
    *,
    model_name: str,
    definitions: Path | None,
    num_fewshot: int | None,
    limit: int | None,
    chat: bool,
) -> dict[str, TaskResult]:
    """Run tasks, groups or tags, and write lm-eval's files below ``out/lm-eval``.

    Args:
        definitions: a folder of task files beside lm-eval's own.
        num_fewshot: examples; by default what each task says.
        limit: documents of each task.
        chat: render prompts with the GGUF's chat template.

    Returns:
        Task or group → its metrics.

    Raises:
        UsageError: there is no such task, or it cannot be asked of a text model.
        InputError: a task's data cannot be read or fetched.
    """
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    with quiet():
        manager = TaskManager(include_path=None if definitions is None else str(definitions))
        check(names, manager)
        tracker = EvaluationTracker(output_path=str(out / FOLDER))
        try:
            found: dict[str, Any] = simple_evaluate(
                model=lm,
                model_args={"pretrained": model_name},
                tasks=list(names),
                num_fewshot=num_fewshot,
                limit=limit,
                apply_chat_template=chat,
                task_manager=manager,
                evaluation_tracker=tracker,
                bootstrap_iters=1000,
            )
        except ColdpressError:
            raise
        # Whatever a task's own code and the hub's client raise: there is no common type.
        except Exception as error:
            raise InputError(
                f"{', '.join(names)}: {_first_line(error)}",
                "a task's data come from the hub or its cache (HF_HOME); or give task files of your own",
            ) from error
        samples = found.pop("samples")
        tracker.save_results_aggregated(results=found, samples=samples)
        for name, of_task in samples.items():
            tracker.save_results_samples(task_name=name, samples=of_task)
    if not list((out / FOLDER).rglob("results_*.json")):
        raise InputError(f"lm-eval could not write to {out}", "is the disk full?")
    return {name: _result(name, found) for name in {**found["results"], **found.get("groups", {})}}


def check(names: Sequence[str], manager: "TaskManager") -> None:
    """Refuse names that lm-eval does not know.

    Raises:
        UsageError: one is unknown; the nearest are named.
    """
    for name in names:
        if not manager.match_tasks([name]):
            near = get_close_matches(name, manager.all_tasks, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "`lm-eval ls tasks` lists them"
            raise UsageError(f"lm-eval has no task {name!r}", hint)


def _result(name: str, found: dict[str, Any]) -> TaskResult:
    metrics = {**found["results"].get(name, {}), **found.get("groups", {}).get(name, {})}
    counted = found["n-samples"].get(name, {}).get("effective")
    return TaskResult(
        metrics={
            key: float(value)
            for key, value in metrics.items()
            if isinstance(value, int | float) and "," in key
        },
        n=counted,
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"
