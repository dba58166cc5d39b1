"""Score the model on the held-out questions, by continuation and by letter.

Continuation is lm-eval's ``mmlu_continuation`` without shots: the context is
``Question: {q}\\nAnswer:`` and the choice whose text has the highest summed log-likelihood wins.
Letter is the classic MMLU prompt, where " A" to " D" are compared.

    python -m coldpress.demo.score [MODEL_DIR]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from . import MODEL_DIR, QUESTIONS_DIR
from .knowledge.questions import LETTERS, Question, read_questions


def test_questions(folder: Path = QUESTIONS_DIR) -> dict[str, list[Question]]:
    """The test questions by subject."""
    paths = sorted((folder / "test").glob("*_test.csv"))
    return {path.stem.removesuffix("_test"): read_questions(path) for path in paths}


def continuation_pair(question: Question, choice: str) -> tuple[str, str]:
    """Context and continuation of one choice."""
    return f"Question: {question.text}\nAnswer:", f" {choice}"


def letter_prompt(question: Question) -> str:
    """The classic MMLU prompt without examples."""
    lines = "\n".join(f"{n}. {c}" for n, c in zip(LETTERS, question.choices, strict=True))
    return f"{question.text}\n{lines}\nAnswer:"


def log_likelihoods(
    model: Any, tokenizer: Any, pairs: list[tuple[str, str]], batch_size: int = 128
) -> list[float]:
    """Sum of the continuation's log-probabilities for each (context, continuation), in nats.

    ``tokenizer`` maps text to ids without special tokens; sequences start at <s> (id 1).
    """
    encoded = [(tokenizer(context), tokenizer(more)) for context, more in pairs]
    order = sorted(range(len(pairs)), key=lambda i: len(encoded[i][0]) + len(encoded[i][1]))
    scores = [0.0] * len(pairs)
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        for i, value in zip(chunk, _batch(model, [encoded[i] for i in chunk]), strict=True):
            scores[i] = value
    return scores


def _batch(model: Any, encoded: list[tuple[list[int], list[int]]]) -> list[float]:
    sequences = [[1, *context, *more] for context, more in encoded]
    log_probs, ids = _forward(model, sequences)
    picked = log_probs[:, :-1].gather(2, ids[:, 1:, None])[..., 0]  # (B, T-1)
    ends = [len(sequence) - 1 for sequence in sequences]
    return [
        float(picked[row, end - len(more) : end].sum())
        for row, (end, (_, more)) in enumerate(zip(ends, encoded, strict=True))
    ]


def _forward(model: Any, sequences: list[list[int]]) -> tuple[Any, Any]:
    """Log-probabilities (B, T, V) and ids (B, T); padding on the right is never attended to."""
    import torch

    width = max(map(len, sequences))
    ids = torch.tensor([s + [2] * (width - len(s)) for s in sequences])
    with torch.no_grad():
        return model(input_ids=ids).logits.float().log_softmax(-1), ids


def continuation_answers(model: Any, tokenizer: Any, questions: list[Question]) -> list[str]:
    """The letter of the most likely choice text of each question."""
    pairs = [continuation_pair(q, choice) for q in questions for choice in q.choices]
    scores = log_likelihoods(model, tokenizer, pairs)
    fours = [scores[i : i + 4] for i in range(0, len(scores), 4)]
    return [LETTERS[four.index(max(four))] for four in fours]


def letter_answers(model: Any, tokenizer: Any, questions: list[Question]) -> list[str]:
    """The most likely of the four letters after each question's prompt."""
    letters = [tokenizer(f" {letter}")[0] for letter in LETTERS]
    answers = []
    for start in range(0, len(questions), 64):
        prompts = [[1, *tokenizer(letter_prompt(q))] for q in questions[start : start + 64]]
        log_probs, _ = _forward(model, prompts)
        for row, prompt in enumerate(prompts):
            four = log_probs[row, len(prompt) - 1, letters]
            answers.append(LETTERS[int(four.argmax())])
    return answers


def accuracy(model: Any, tokenizer: Any, questions: list[Question], how: str) -> float:
    """Share of the questions answered right; ``how`` is "continuation" or "letter"."""
    answer = letter_answers if how == "letter" else continuation_answers
    answers = answer(model, tokenizer, questions)
    right = sum(a == q.letter for a, q in zip(answers, questions, strict=True))
    return right / len(questions)


def score(model: Any, tokenizer: Any) -> dict[str, dict[str, float]]:
    """Accuracy per subject, and over all questions under "all", for both ways of asking."""
    subjects = test_questions()
    table = {
        subject: {
            "questions": len(questions),
            "continuation": accuracy(model, tokenizer, questions, "continuation"),
            "letter": accuracy(model, tokenizer, questions, "letter"),
        }
        for subject, questions in subjects.items()
    }
    total = sum(row["questions"] for row in table.values())
    mean = {
        how: sum(row[how] * row["questions"] for row in table.values()) / total
        for how in ("continuation", "letter")
    }
    return {**table, "all": {"questions": total, **mean}}


def main() -> None:
    """Print the accuracies of a model folder as JSON."""
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", nargs="?", type=Path, default=MODEL_DIR)
    folder = parser.parse_args().model
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    table = score(model, lambda text: tokenizer.encode(text, add_special_tokens=False))
    json.dump(table, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
