"""What an evaluation says: ``evaluation.json`` as frozen dataclasses, units in the names."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from coldpress.errors import InputError
from coldpress.validation import first_problem

FILE = "evaluation.json"


@dataclass(frozen=True)
class Accuracy:
    """Share of questions answered right, 0–1, with its standard error."""

    accuracy: float
    stderr: float
    n: int
    by_subject: dict[str, float]


@dataclass(frozen=True)
class TaskResult:
    """An lm-eval task's or group's metrics by lm-eval's names (``acc,none``), over ``n`` documents."""

    metrics: dict[str, float]
    n: int | None


@dataclass(frozen=True)
class Perplexity:
    """llama.cpp's perplexity; ``stderr`` of the value, ``bits_per_byte`` free of the tokenizer."""

    value: float
    stderr: float
    n_tokens: int
    bits_per_byte: float


@dataclass(frozen=True)
class Kl:
    """KL divergence from the base model in nats per token, and how often the top token agrees."""

    mean: float
    median: float
    p99: float
    max: float
    same_top1: float
    n: int


@dataclass(frozen=True)
class SpeedPoint:
    """Rates with so many threads: of a prompt of ``context_tokens``, and of generating after it."""

    threads: int
    context_tokens: int
    prompt_tok_per_s: float
    generate_tok_per_s: float


@dataclass(frozen=True)
class Speed:
    """Measured in a process of its own, the libraries loaded; rates are medians.

    ``load_s`` and ``ttft_s`` are with the file in the page cache; ``ttft_s`` is from the start of
    loading to the first token after a 32-token prompt. The ``cold`` ones are after the cache was
    told to forget the file; None where it kept it: ``cold_cached_share`` is what stayed, 0–1.
    ``peak_rss_mib`` is of loading and the first two rates. ``grid`` is empty unless asked for.
    """

    prompt_tok_per_s: float
    generate_tok_per_s: float
    load_s: float
    peak_rss_mib: float
    ttft_s: float
    cold_load_s: float | None
    cold_ttft_s: float | None
    cold_cached_share: float
    grid: tuple[SpeedPoint, ...]


@dataclass(frozen=True)
class Conditions:
    """Under what the figures were taken; digests are sha256, ``n_ctx`` in tokens."""

    n_ctx: int
    threads: int
    num_fewshot: int
    llama_cpp_python: str
    cpu: str
    cpu_backend: str
    questions_digest: str | None
    text_digest: str | None
    vocabulary_digest: str


@dataclass(frozen=True)
class Evaluation:
    """Everything measured of one GGUF; what was not asked for is None."""

    name: str
    model: str
    type: str
    method: Literal[
        "base", "plain", "imatrix", "preset", "compensated", "budget", "taught", "student", "file"
    ]
    size_bytes: int
    n_params: int
    bits_per_weight: float
    profile: str
    questions: dict[str, Accuracy]
    tasks: dict[str, TaskResult]
    perplexity: Perplexity | None
    kl: Kl | None
    speed: Speed | None
    conditions: Conditions


def write(evaluation: Evaluation, path: Path) -> None:
    """Write an evaluation as JSON."""
    text = json.dumps(asdict(evaluation), indent=1, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def read(folder: Path) -> Evaluation:
    """Read the evaluation in an artifact's folder.

    Raises:
        InputError: there is none, or it is not one.
    """
    from pydantic import TypeAdapter, ValidationError

    path = folder / FILE
    try:
        return TypeAdapter(Evaluation).validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{folder} holds no evaluation", "run coldpress evaluate first") from error
    except ValidationError as error:
        raise InputError(
            f"{path} is not an evaluation: {first_problem(error)}", "evaluate the model again"
        ) from error
