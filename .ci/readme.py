"""Write README's generated parts from reports/; with `--check`, fail when they differ."""

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def generated(reports: Path) -> dict[str, str]:
    """Part name → Markdown."""
    names = ("demo", "equal_bytes", "ablation", "evaluate", "load", "prefix", "serve", "package")
    demo, equal_bytes, ablation, evaluate, load, prefix, serve, package = (
        json.loads((reports / f"{name}.json").read_text()) for name in names
    )
    fewer = json.loads((reports / "prune_distill.json").read_text())
    zeros = json.loads((reports / "sparsity.json").read_text())
    return {
        "results": _results(demo),
        "equal-bytes": _equal_bytes(equal_bytes),
        "ablation": _ablation(ablation),
        "fewer-weights": _fewer_weights(fewer, zeros),
        "evaluate": _evaluate(evaluate),
        "load": _load(load, prefix),
        "serve": _serve(serve),
        "package": _package(package),
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


def _fewer_weights(report: dict[str, Any], zeros: dict[str, Any]) -> str:
    files = report["equal_bytes"]
    base, table = report["base"], report["table"]
    size = max(each["size_bytes"] for each in files if each["way"] != "Q2_K plain") / 1e6
    return "\n".join(
        [
            f"At the bytes of 2.6 bits per weight of the demo model ({size:.2f} MB; bf16 answers"
            f" {100 * base['accuracy']:.1f} %), KL and accuracy on held-out text and questions:",
            "",
            "| file | MB | bits/weight | accuracy | KL to bf16 |",
            "| --- | ---: | ---: | ---: | ---: |",
            *(
                f"| {each['way']} | {each['size_bytes'] / 1e6:.2f} | {each['bits_per_weight']:.2f} |"
                f" {100 * each['accuracy']:.1f} % | {each['kl_mean']:.4f} |"
                for each in files
            ),
            "",
            "Parts of the blocks taken out, before → after so many tokens of teaching, bf16:",
            "",
            "| taken out | weights left | tokens | accuracy | KL to bf16 |",
            "| --- | ---: | ---: | ---: | ---: |",
            *(_taken(each) for each in [*report["recovery"].values(), *table]),
            "",
            f"Zeros in half of the weights, wherever they are, save"
            f" {zeros['headline']['bytes_saved_at_q4_k']} bytes of a GGUF. [reports/prune_distill.json]"
            "(reports/prune_distill.json), [reports/sparsity.json](reports/sparsity.json),"
            " [docs/fewer-weights.md](docs/fewer-weights.md).",
        ]
    )


def _taken(each: dict[str, Any]) -> str:
    before, after = each["before"], each["after"]
    return (
        f"| {100 * each['ratio']:g} % of {each['how']} | {each['parameters'] / 1e6:.2f} M |"
        f" {each['tokens']} | {100 * before['accuracy']:.1f} → {100 * after['accuracy']:.1f} % |"
        f" {before['kl_mean']:.3f} → {after['kl_mean']:.3f} |"
    )


def _evaluate(report: dict[str, Any]) -> str:
    head, whole = report["headline"], report["whole_mmlu_demo"]
    likelihoods = report["loglikelihoods"]
    return (
        f"The evaluator runs the shipped file. Its log-likelihoods are within"
        f" {head['max_loglikelihood_diff_vs_transformers']:.1e} nats of transformers' in float32 (and within"
        f" {likelihoods['max_difference_from_float64_nats']:.1e} of float64, from which transformers' float32 is"
        f" {likelihoods['max_difference_of_transformers_from_its_float64_nats']:.1e} away). All"
        f" {whole['n']:,} questions of MMLU with five examples take {head['mmlu_5shot_tokens'] / 1e6:.2f} M"
        f" tokens, as every shared beginning is decoded once:"
        f" {head['mmlu_wall_ratio_vs_one_pass_per_question']:.1f} times faster than a pass per question."
        f" Perplexity differs from `llama-perplexity` by {head['perplexity_rel_diff_vs_llama_perplexity']:.0e},"
        f" KL by {100 * head['kl_rel_diff_vs_llama_perplexity']:.2f} %, from a base file"
        f" {head['kl_base_file_ratio']:.0f} times smaller ([reports/evaluate.json](reports/evaluate.json))."
    )


def _load(report: dict[str, Any], prefix: dict[str, Any]) -> str:
    head, model = report["headline"], report["throttled"]["model"]
    size_gb = report["conditions"]["size_bytes"] / 1e9
    share = 100 * head["throttled_bandwidth_share"]
    rows = [
        ("cold disk → first token, over fio's read and a warm first token", head["cold_vs_fio_plus_first_token"]),
        ("… over llama.cpp's fastest load mode", head["cold_vs_fastest_llama_cpp_mode"]),
        ("transformers on the bf16 original, over ours", head["speedup_vs_transformers"]),
        ("reading the tensors: torch.load over ours", head["speedup_vs_torch_load"]),
        (
            f"storage of {model['latency_ms']} ms per request and {model['stream_mb_s']} MB/s per stream:"
            " llama.cpp's mmap over ours",
            head["throttled_speedup_vs_mmap"],
        ),
        (
            "first token after a shipped system prompt of 1,000 tokens, over that of an empty prompt",
            prefix["headline"]["prefix_first_token_ratio"],
        ),
    ]  # fmt: skip
    return "\n".join(
        [
            f"| a checkpoint of {size_gb:.2f} GB, Llama-3.2-1B's dimensions, 2 CPUs | ratio |",
            "| --- | ---: |",
            *(f"| {what} | {ratio:.2f} |" for what, ratio in rows),
            "",
            f"Every byte from slow storage is verified on the way, at {share:.0f} % of its"
            f" {model['total_mb_s']} MB/s. With the file in the page cache it is ready after"
            f" {head['warm_s_per_gb']:.2f} s per GB, nearly all of it llama.cpp's reading of 128,256 tokens"
            " ([reports/load.json](reports/load.json), [docs/loading.md](docs/loading.md)).",
        ]
    )


def _serve(report: dict[str, Any]) -> str:
    head, clouds, soak = report["headline"], report["clouds"], report["soak"]
    rows = [
        ("one stream, 64 tokens generated: tok/s over llama-bench's", "decode_vs_llama_bench", "×"),
        ("one stream, 512 tokens read: tok/s over llama-bench's", "prefill_vs_llama_bench", "×"),
        ("8 streams: total tok/s over llama-server's", "total_8_streams_vs_llama_server", "×"),
        (
            "… 95th percentile of the time to first text, ours minus llama-server's",
            "first_token_p95_minus_llama_server_s",
            " s",
        ),
        ("… on the demo model, over llama_cpp.server's", "total_8_streams_vs_llama_cpp_server", "×"),
        ("prompt lookup, copying: tok/s over those without", "speculative_tok_s_ratio", "×"),
        ("process start → answers over HTTP", "start_to_listening_s", " s"),
        ("process start → first text, ours minus llama-server's", "first_token_minus_llama_server_s", " s"),
        ("imports of Lambda's path, beyond an interpreter's", "lambda_import_s", " s"),
    ]  # fmt: skip
    published = clouds["published"]
    return "\n".join(
        [
            "| random weights of Llama-3.2-1B's dimensions, Q4_K, 2 threads | |",
            "| --- | ---: |",
            # A part that is not measured has no row.
            *(f"| {what} | {head[key]:.2f}{unit} |" for what, key, unit in rows if key in head),
            "",
            f"{soak['clients']} mixed clients for {soak['minutes']:g} minutes, twice as many as fit:"
            f" {soak['mismatched']} streams differ from their solo run, {soak['broken']} answers broke off or were"
            f" refused otherwise than by 429 or 503 with `Retry-After`, and resident memory changed by"
            f" {head['soak_rss_growth_pct']:+.1f} %.",
            "",
            "The images under each cloud's rules, emulated by podman; seconds from the start of the process:",
            "",
            "| model | on | memory | vCPU there / here | cold start | tok/s | USD for 1,000 requests |",
            "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
            *(_cloud(row) for row in clouds["rows"]),
            "",
            f"A request reads about {clouds['prompt_tokens']} tokens and is answered with"
            f" {clouds['answer_tokens']}; tok/s are over all of its time. Published for"
            f" {published['model']} at {published['memory_mib']:,} MB:"
            f" {' and '.join(map(str, published['tok_s']))} tok/s ([reports/serve.json](reports/serve.json),"
            " [docs/serving.md](docs/serving.md)).",
        ]
    )


def _cloud(row: dict[str, Any]) -> str:
    return (
        f"| {row['model']} | {row['target']} | {row['memory_mib']:,} MB |"
        f" {row['vcpu']:.1f} / {row['vcpu_here']:.1f} | {row['cold_start_s']:.2f} s |"
        f" {row['tok_s']:.1f} | {1000 * row['usd_per_request']:.3f} |"
    )


def _package(report: dict[str, Any]) -> str:
    head = report["headline"]
    rows = [
        ("image of 0.95 GB of weights: time to build over copying them twice", "build_vs_copy_twice", "{:.2f}×"),
        ("… `buildah bud` of the equivalent Dockerfile, over ours", "build_speedup_vs_buildah", "{:.1f}×"),
        ("… peak memory", "build_peak_rss_mib", "{:.0f} MiB"),
        ("… sent to a registry after a change of the app", "rebuild_pushed_bytes", "{:,.0f} bytes"),
        ("`lint`: rules, each with its source", "lint_rules", "{:.0f}"),
        ("`plan` of three sizes against podman, largest error: memory", "plan_memory_error_pct", "{:.0f} %"),
        ("… tok/s", "plan_tok_s_error_pct", "{:.0f} %"),
        ("… cold start", "plan_cold_start_error_pct", "{:.0f} %"),
    ]  # fmt: skip
    speeds = {
        name: each["decode_tok_s"] for name, each in report["variants"]["tok_s"].items() if each
    }
    ranked = sorted(speeds, key=lambda name: -speeds[name])
    return "\n".join(
        [
            "| images | |",
            "| --- | ---: |",
            *(f"| {what} | {form.format(head[key])} |" for what, key, form in rows if key in head),
            "",
            "One image runs on every x86-64 CPU; the demo model's tok/s by instruction set, all on the same CPU: "
            + ", ".join(f"{name} {speeds[name]:,.0f}" for name in ranked)
            + " ([reports/package.json](reports/package.json), [docs/packaging.md](docs/packaging.md)).",
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
