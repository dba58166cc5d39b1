"""The pruned and taught students as draft models of speculative decoding.

``python -m benchmarks.draft --folder FOLDER`` takes what ``benchmarks.prune_distill`` made there
and adds ``draft`` to its report. The model is the demo model at Q8_0, the drafts are students at
Q4_K; each answer with a draft must be the answer without, word for word.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.prune_distill import FEW, MANY, REPORT, Folder
from benchmarks.serve_client import Answer, ask, body, until_answered
from benchmarks.serve_servers import ours, running
from coldpress import demo
from coldpress.quantize import QuantizeOptions

_ROUNDS, _ANSWER, _CONTEXT = 5, 96, 1024
_PROMPTS = {
    "facts": "Question: What is the capital of France?\nAnswer: Paris\n\nQuestion: What is the capital of",
    "story": "One morning Anna went to the harbour.",
    "prose": demo.HELDOUT_TEXT.read_text(encoding="utf-8")[:400],
}


def measure(model: Path, draft: Path) -> dict[str, Any]:
    """By kind of prompt the tok/s without and with, and their ratio."""
    command = ours(model, 1, _CONTEXT)
    command = replace(command, argv=(*command.argv, "--draft", str(draft)))
    found: dict[str, Any] = {}
    with running(command) as process:
        until_answered(command.port, body("a", 1, {}), process)
        for kind, prompt in _PROMPTS.items():
            rates: dict[str, list[float]] = {"off": [], "draft": []}
            for turn in range(_ROUNDS + 1):
                asked = body(prompt, _ANSWER, {"2": -100, "6": -100})
                answers = {way: ask(command.port, {**asked, "speculative": way}) for way in rates}
                if answers["off"].text != answers["draft"].text:
                    raise SystemExit(f"{kind}: another answer with {draft}")
                for way, answer in answers.items():
                    if turn:  # the first is a warm-up
                        rates[way].append(_tok_s(answer))
            each = [fast / slow for fast, slow in zip(rates["draft"], rates["off"], strict=True)]
            found[kind] = {"tok_s": rates, "ratio": median(each)}
    return found


def _tok_s(answer: Answer) -> float:
    return (answer.tokens - 1) / (answer.end_s - answer.first_s)


def main() -> None:
    """Measure each student."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, default=Path("build/prune_distill"))
    at = Folder(parser.parse_args().folder)
    model = at.rounded("base", demo.MODEL_DIR, QuantizeOptions(type="Q8_0"), "q8")
    found = {}
    for how, ratio, tokens in (("shapes", 0.25, MANY), ("depth", 0.5, FEW)):
        student = at.taught(how, ratio, tokens)
        name = f"{how}-{ratio}-{tokens}"
        draft = at.rounded(name, student, QuantizeOptions(type="Q4_K"), "draft")
        found[name] = measure(model / "model.gguf", draft / "model.gguf")
        print(name, {kind: round(each["ratio"], 2) for kind, each in found[name].items()})
    report = json.loads(REPORT.read_text())
    report["draft"] = found
    REPORT.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
