"""Evaluation artifacts with made-up, plausible figures: what a report is tested on."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from coldpress import artifact
from coldpress.evaluate import result

N_QUESTIONS = 800
SUBJECTS = ("capitals", "elements", "plurals", "units")
N_PARAMS = 7_340_000

# (name, type, method, size in MB, share right, KL in nats)
DEMO = (
    ("bf16", "bf16", "base", 14.8, 0.942, None),
    ("Q8_0", "Q8_0", "plain", 7.92, 0.941, 0.0006),
    ("Q6_K", "Q6_K", "plain", 6.16, 0.940, 0.0011),
    ("Q5_K", "Q5_K", "plain", 5.20, 0.936, 0.0032),
    ("Q4_K", "Q4_K", "plain", 4.30, 0.921, 0.011),
    ("Q3_K", "Q3_K", "plain", 3.34, 0.842, 0.058),
    ("Q2_K", "Q2_K", "plain", 2.62, 0.523, 0.41),
    ("Q6_K imatrix", "Q6_K", "imatrix", 6.16, 0.941, 0.0009),
    ("Q5_K imatrix", "Q5_K", "imatrix", 5.20, 0.939, 0.0021),
    ("Q4_K imatrix", "Q4_K", "imatrix", 4.30, 0.934, 0.0060),
    ("Q4_K_M imatrix", "Q4_K_M", "preset", 4.76, 0.939, 0.0037),
    ("IQ4_XS imatrix", "IQ4_XS", "imatrix", 4.07, 0.933, 0.0068),
    ("Q3_K imatrix", "Q3_K", "imatrix", 3.34, 0.901, 0.029),
    ("IQ3_S imatrix", "IQ3_S", "imatrix", 3.33, 0.911, 0.021),
    ("IQ3_XXS imatrix", "IQ3_XXS", "imatrix", 3.00, 0.872, 0.049),
    ("Q2_K imatrix", "Q2_K", "imatrix", 2.62, 0.711, 0.18),
    ("IQ2_S imatrix", "IQ2_S", "imatrix", 2.55, 0.742, 0.16),
)


def write(
    folder: Path,
    made: tuple[Any, ...],
    gguf: Path | None = None,
    *,
    subjects: tuple[str, ...] = SUBJECTS,
    speed: result.Speed | None = None,
    tasks: dict[str, result.TaskResult] | None = None,
    letters: bool = False,
    **changes: Any,
) -> Path:
    """Write one made-up evaluation, of ``gguf`` if given; ``changes`` replace fields of its conditions.

    ``letters``: as MMLU is published, the one scoring that was asked.
    """
    name, kind, method, size_mb, share, kl = made
    draw = random.Random(7)
    hard = [draw.random() for _ in range(N_QUESTIONS)]
    right = [share > each for each in hard]
    samples = [
        {
            "scoring": "letter" if letters else "continuation",
            "subject": subjects[i % len(subjects)],
            "index": i,
            "log_likelihoods": [-1.0, -2.0, -3.0, -4.0],
            "choice": 0,
            "correct": right[i],
        }
        for i in range(N_QUESTIONS)
    ]
    size_bytes = int(size_mb * 1e6)
    accuracy = sum(right) / len(right)
    by_subject = {
        subject: sum(right[i :: len(subjects)]) / len(right[i :: len(subjects)])
        for i, subject in enumerate(subjects)
    }
    conditions = result.Conditions(
        n_ctx=512,
        threads=2,
        num_fewshot=5,
        llama_cpp_python="0.3.36",
        cpu="Intel(R) Xeon(R) Processor",
        cpu_backend="sapphirerapids",
        questions_digest="a" * 64,
        text_digest="b" * 64,
        vocabulary_digest="d" * 64,
    )
    evaluation = result.Evaluation(
        name=name,
        model=name,
        type=kind,
        method=method,
        size_bytes=size_bytes,
        n_params=N_PARAMS,
        bits_per_weight=8 * size_bytes / N_PARAMS,
        profile="exact",
        questions={"letter": result.Accuracy(accuracy, 0.008, N_QUESTIONS, by_subject)}
        if letters
        else {
            "continuation": result.Accuracy(accuracy, 0.008, N_QUESTIONS, by_subject),
            "letter": result.Accuracy(0.25 + 0.1 * share, 0.016, N_QUESTIONS, by_subject),
        },
        tasks=tasks or {},
        perplexity=result.Perplexity(18.2 * (1 + (kl or 0)), 0.2, 8670, 1.24),
        kl=None if kl is None else result.Kl(kl, kl / 2, kl * 9, kl * 40, 1 - kl**0.5 / 2, 8670),
        speed=_speed(size_mb) if speed is None else speed,
        conditions=replace(conditions, **changes),
    )
    inputs = {} if gguf is None else {"gguf": gguf}
    with artifact.create(folder, "evaluate", inputs=inputs, options={"name": name}) as draft:
        result.write(evaluation, draft.folder / result.FILE)
        lines = "".join(json.dumps(sample) + "\n" for sample in samples)
        (draft.folder / "samples.jsonl").write_text(lines)
    return folder


def write_all(folder: Path, **changes: Any) -> list[Path]:
    """Write the whole made-up demo, one folder per file."""
    return [write(folder / f"{i:02d}", made, **changes) for i, made in enumerate(DEMO)]


def _speed(size_mb: float) -> result.Speed:
    return result.Speed(
        prompt_tok_per_s=3100 + 900 / size_mb,
        generate_tok_per_s=90 + 700 / size_mb,
        load_s=0.02,
        peak_rss_mib=40 + size_mb,
        ttft_s=0.05,
        cold_load_s=0.04,
        cold_ttft_s=0.08,
        cold_cached_share=0.0,
        grid=(),
    )
