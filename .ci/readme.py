"""Write README's generated parts from reports/; with `--check`, fail when they differ."""

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def generated(demo: dict[str, Any]) -> dict[str, str]:
    """Part name → Markdown."""
    return {"results": _results(demo), "transcript": _transcript(demo)}


def _results(demo: dict[str, Any]) -> str:
    head, conditions = demo["headline"], demo["conditions"]
    lines = [
        f"The embedded demo model ({conditions['n_params'] / 1e6:.1f} M parameters) answers"
        f" {100 * head['bf16_accuracy']:.1f} % of {conditions['n_questions']:,} held-out questions at"
        f" bf16. Rounded plainly, {100 * head['q4_accuracy']:.1f} % are left at 4 bits and"
        f" {100 * head['q2_accuracy']:.1f} % at 2 (chance: 25 %). Its Lambda image is"
        f" {head['image_bytes'] / 1e6:.0f} MB, and the first token comes"
        f" {head['cold_start_to_first_token_s']:.2f} s after the runtime's process starts.",
        "",
        "| file | bits/weight | MB | accuracy | KL to bf16 | same top-1 | tok/s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(_row(row) for row in demo["rows"]),
        "",
        f"★: no smaller file has a lower KL. Measured {conditions['date']} on"
        f" {conditions['cpu']}, {conditions['threads']} threads, llama-cpp-python"
        f" {conditions['llama_cpp_python']}, profile {conditions['profile']}; `make bench` writes"
        " [reports/demo.json](reports/demo.json), `make docs` this part. How the model was made, and"
        " why it feels 2 bits: [its card](coldpress/demo/CARD.md).",
    ]
    return "\n".join(lines)


def _row(row: dict[str, Any]) -> str:
    accuracy = f"{100 * row['accuracy']:.1f} ± {100 * row['accuracy_stderr']:.1f} %"
    kl = "–" if row["kl_mean"] is None else f"{row['kl_mean']:.4f}"
    same = "–" if row["same_top1"] is None else f"{100 * row['same_top1']:.1f} %"
    marks = " ★" * row["best_kl"] + " (recommended)" * row["recommended"]
    return (
        f"| {row['name']}{marks} | {row['bits_per_weight']:.2f} | {row['size_bytes'] / 1e6:.2f} |"
        f" {accuracy} | {kl} | {same} | {row['generate_tok_per_s']:.0f} |"
    )


def _transcript(demo: dict[str, Any]) -> str:
    return "\n\n".join(
        f"```console\n$ {part['command']}\n{part['output'].rstrip()}\n```"
        for part in demo["transcript"]
    )


def main() -> int:
    """Write the parts, or say which differ."""
    demo = json.loads((ROOT / "reports/demo.json").read_text())
    path = ROOT / "README.md"
    old = new = path.read_text()
    for name, text in generated(demo).items():
        part = re.compile(f"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
        new = part.sub(lambda found, body=text: f"{found[1]}{body}\n{found[2]}", new)
    if "--check" in sys.argv:
        if old != new:
            print("README.md differs from reports/: run `make docs`", file=sys.stderr)
        return int(old != new)
    path.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
