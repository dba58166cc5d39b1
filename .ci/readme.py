"""Write README's generated parts from reports/; with `--check`, fail when they differ."""

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def generated(reports: Path) -> dict[str, str]:
    """Part name → Markdown."""
    demo, equal_bytes, ablation = (
        json.loads((reports / f"{name}.json").read_text())
        for name in ("demo", "equal_bytes", "ablation")
    )
    return {
        "results": _results(demo),
        "equal-bytes": _equal_bytes(equal_bytes),
        "ablation": _ablation(ablation),
        "transcript": _transcript(demo),
    }


def _equal_bytes(report: dict[str, Any]) -> str:
    head, conditions = report["headline"], report["conditions"]
    budgets = [
        each
        for each in report["models"]["demo"]["budgets"]
        if each["budget"].endswith("bpw") and each["preset"]
    ]
    models = report["models"]
    healed = [name for name, model in models.items() if model["healed"]]
    return "\n".join(
        [
            f"At every one of {report['n_budgets']} budgets from 2.3 to 6 bits per weight, on {len(models)} models"
            f" ({', '.join(models)}; healed: {', '.join(healed) or 'none'}), the file of"
            " `coldpress quantize --size` has at most"
            f" **{head['worst_kl_ratio_below_3_2_bpw']:.2f}×** (below 3.2 bits) and"
            f" **{head['worst_kl_ratio_above_3_2_bpw']:.2f}×** (above) the KL divergence of llama.cpp's best"
            " imatrix preset of up to the next larger size"
            f" (median {head['median_kl_ratio']:.2f}×), and at most {head['worst_kl_ratio_vs_gptq']:.2f}× that of"
            " GPTQ at its checkpoint's bytes. Judged by `llama-perplexity --kl-divergence` on held-out text; the"
            " demo model's ladder:",
            "",
            "| bits/weight | bytes | KL | llama.cpp's preset | its bytes | its KL | ratio | accuracy gained |",
            "| ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: |",
            *(_budget(each) for each in budgets),
            "",
            f"Every budget, the uniform types and GPTQ: [reports/equal_bytes.json](reports/equal_bytes.json), by"
            f" `{conditions['command']}`, {conditions['date']}.",
        ]
    )


def _budget(each: dict[str, Any]) -> str:
    ours, preset, gained = each["ours"], each["preset"], each["accuracy_minus_preset"]
    return (
        f"| {each['bits_per_weight']:.2f} | {ours['size_bytes']:,} | {ours['kl']:.4f} |"
        f" {preset['name']} | {preset['size_bytes']:,} | {preset['kl']:.4f} |"
        f" {each['kl_ratio_preset']:.2f} |"
        f" {100 * gained[0]:+.1f} ± {100 * gained[1]:.1f} points |"
    )


def _ablation(report: dict[str, Any]) -> str:
    types = report["types"]
    sizes = ", ".join(f"{name} {rows[1]['size_bytes']:,}" for name, rows in types.items())
    steps = [row["step"] for row in next(iter(types.values()))]
    return "\n".join(
        [
            f"| KL at the same bytes ({sizes}) | {' | '.join(types)} |",
            f"| --- |{' ---: |' * len(types)}",
            *(
                _step(step, [_kl(rows, i) for rows in types.values()])
                for i, step in enumerate(steps)
            ),
        ]
    )


def _kl(rows: list[dict[str, Any]], i: int) -> str:
    return f"{rows[i]['kl']:.4f}" if i < len(rows) else "–"


def _step(step: str, values: list[str]) -> str:
    return f"| {step} | {' | '.join(values)} |"


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
    shown = "\n\n".join(
        f"```console\n$ {part['command']}\n{part['output'].rstrip()}\n```"
        for part in demo["transcript"]
    )
    again = f"The second time everything is reused, in {demo['second_run_s']:.1f} s."
    return f"What `make demo` prints the first time:\n\n{shown}\n\n{again}"


def main() -> int:
    """Write the parts, or say which differ."""
    path = ROOT / "README.md"
    old = new = path.read_text()
    for name, text in generated(ROOT / "reports").items():
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
