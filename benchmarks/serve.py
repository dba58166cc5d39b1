"""How our runtime compares with llama.cpp's own programs: ``reports/serve.json``.

``python -m benchmarks.serve`` measures, on the demo model and on random weights of Llama-3.2-1B's dimensions, both
at Q4_K, with two threads; ``--only`` renews some parts and keeps the others:

    engine       one stream in process, beside llama-bench
    streams      eight streams over HTTP, beside llama-server and llama_cpp.server
    start        from a process's start to its first text; imports and memory of Lambda's path
    speculation  with prompt lookup and without

Contenders take turns. Give it an idle machine: llama.cpp's threads spin while they wait, which another program on
their CPU punishes, and ours do not; ``others_cpus`` of each part says how idle it was. ``--peer-python`` names an
interpreter with llama-cpp-python's server (``pip install WHEEL[server]``, the wheel from the cache).
``benchmarks.soak`` and ``benchmarks.clouds`` write their parts themselves.
"""

import argparse
import os
from typing import Any

from benchmarks import (
    serve_engine,
    serve_models,
    serve_report,
    serve_speculation,
    serve_start,
    serve_streams,
)

PARTS = ("engine", "streams", "start", "speculation")
_HEADLINE: serve_models.Name = "1b"
_PEERS = ("llama-server", "llama-server, repacking")
Part = tuple[dict[str, Any], dict[str, float]]


def engine(rounds: int) -> Part:
    """One stream; the headline is of the 1B dimensions."""
    found = {name: serve_engine.compare(name, rounds) for name in serve_models.NAMES}
    best = {
        figure: {name: serve_engine.headline(part, figure) for name, part in found.items()}
        for figure in ("decode_tok_s", "prefill_tok_s")
    }
    return {"models": found, "ratios": best}, {
        "decode_vs_llama_bench": best["decode_tok_s"][_HEADLINE],
        "prefill_vs_llama_bench": best["prefill_tok_s"][_HEADLINE],
    }


def streams(rounds: int, peer_python: str | None) -> Part:
    """Eight streams; llama_cpp.server only where it is quick enough to be worth the time."""
    found = {
        name: serve_streams.compare(name, rounds, peer_python if name == "demo" else None)
        for name in serve_models.NAMES
    }
    of = found[_HEADLINE]
    ran = [peer for peer in _PEERS if peer in of["ratios"]]
    slowest = {key: figures["first_token_p95_s"] for key, figures in of["figures"].items()}
    headline = {
        "total_8_streams_vs_llama_server": min(of["ratios"][peer]["median"] for peer in ran),
        "first_token_p95_minus_llama_server_s": slowest["coldpress"]
        - min(slowest[peer] for peer in ran),
    }
    if other := found["demo"]["ratios"].get("llama_cpp.server"):
        headline["total_8_streams_vs_llama_cpp_server"] = other["median"]
    return {"models": found}, headline


def start(rounds: int) -> Part:
    """Starts of both models, imports, memory."""
    found = {name: serve_start.starts(name, rounds) for name in serve_models.NAMES}
    imported = serve_start.imports(2 * rounds)
    kept = {name: serve_start.memory(name) for name in serve_models.NAMES}
    figures = found[_HEADLINE]["figures"]
    first = {server: each["first_token_s"] for server, each in figures.items()}
    return {"models": found, "imports": imported, "memory": kept}, {
        "start_to_listening_s": figures["coldpress"]["listening_s"],
        "first_token_minus_llama_server_s": first["coldpress"]
        - min(first[peer] for peer in _PEERS),
        "lambda_import_s": imported["beyond_interpreter"]["all"]["seconds"],
    }


def speculation(rounds: int) -> Part | None:
    """Prompt lookup; None while the runtime has none. The headline is of the demo model, which can copy."""
    found = {name: serve_speculation.compare(name, rounds) for name in serve_models.NAMES}
    of_demo = found["demo"]
    if of_demo is None:
        return None
    return {"models": found}, {"speculative_tok_s_ratio": of_demo["copy"]["ratio"]}


def main() -> None:
    """Measure the parts asked for and write each into the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peer-python", help="an interpreter with llama_cpp.server")
    asked = parser.parse_args()
    os.chdir(serve_report.REPORT.parents[1])  # contenders are started as modules of this tree
    measures: dict[str, Any] = {
        "engine": lambda: engine(asked.rounds),
        "streams": lambda: streams(asked.rounds, asked.peer_python),
        "start": lambda: start(asked.rounds),
        "speculation": lambda: speculation(asked.rounds),
    }
    for part in asked.only or PARTS:
        quiet = serve_report.Quiet()
        if measured := measures[part]():
            body, headline = measured
            body["others_cpus"] = quiet.others_cpus()
            serve_report.update(part, "python -m benchmarks.serve", body, headline)


if __name__ == "__main__":
    main()
