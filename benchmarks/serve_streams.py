"""Eight streams at once: total tokens per second and the time to the first token, beside other servers.

All servers stay up and take turns: each round asks eight prompts that no server has seen, of every server the
same. An answer that does not have the asked number of tokens stops the benchmark.
"""

import subprocess
import sys
from contextlib import ExitStack
from statistics import median, quantiles
from typing import Any

from benchmarks import serve_models
from benchmarks.serve_client import Answer, body, together, until_answered
from benchmarks.serve_servers import Command, llama_cpp_server, llama_server, ours, running

STREAMS, PROMPT, ANSWER = 8, 100, 64
_CONTEXT = 512
Round = dict[str, Any]


def compare(name: serve_models.Name, rounds: int, peer_python: str | None) -> dict[str, Any]:
    """Rounds of every server in turns, and our total over theirs.

    Args:
        peer_python: an interpreter with ``llama_cpp.server``; None leaves that server out.
    """
    gguf = serve_models.gguf(name)
    commands = [
        ours(gguf, STREAMS, _CONTEXT),
        llama_server(gguf, STREAMS, _CONTEXT, repack=False),
        llama_server(gguf, STREAMS, _CONTEXT, repack=True),
    ]
    if peer_python is not None:
        commands.append(llama_cpp_server(peer_python, gguf, _CONTEXT))
    runs: dict[str, list[Round]] = {command.name: [] for command in commands}
    failed: dict[str, str] = {}
    with ExitStack() as up:
        servers = [(command, up.enter_context(running(command))) for command in commands]
        for turn in range(rounds + 1):
            asked = _bodies(name, turn)
            for command, process in servers:
                if command.name in failed:
                    continue
                try:
                    taken = _round(command, process, asked)
                except (subprocess.CalledProcessError, SystemExit) as error:
                    if command is commands[0]:
                        raise
                    failed[command.name] = str(error)
                    continue
                if turn:  # the first round is a warm-up
                    runs[command.name].append(taken)
                    print(f"round {turn} {name} {command.name}: {_short(taken)}", file=sys.stderr)
    peers = {key: taken for key, taken in runs.items() if key not in failed}
    return {
        "runs": runs,
        "failed": failed,
        "ratios": {key: _ratios(runs[commands[0].name], taken) for key, taken in peers.items()},
        "figures": {key: _figures(taken) for key, taken in peers.items()},
    }


def _bodies(name: serve_models.Name, turn: int) -> list[dict[str, Any]]:
    numbers = range(turn * STREAMS, (turn + 1) * STREAMS)
    bias = serve_models.end_bias(name)
    return [body(prompt, ANSWER, bias) for prompt in serve_models.prompts(name, PROMPT, numbers)]


def _round(
    command: Command, process: "subprocess.Popen[bytes]", asked: list[dict[str, Any]]
) -> Round:
    until_answered(command.port, {**asked[0], "prompt": "a", "max_tokens": 1}, process)
    answers = together(command.port, asked)
    for answer in answers:
        _check(command, answer)
    began = min(answer.asked_s for answer in answers)
    return {
        "total_tok_s": STREAMS * ANSWER / (max(answer.end_s for answer in answers) - began),
        "first_token_s": sorted(answer.first_s - answer.asked_s for answer in answers),
        "prompt_tokens": sum(answer.prompt_tokens or 0 for answer in answers),
    }


def _check(command: Command, answer: Answer) -> None:
    if answer.reason != "length" or answer.tokens not in {ANSWER, None}:
        raise SystemExit(f"{command.name} gave {answer.tokens} tokens ({answer.reason})")


def _short(taken: Round) -> dict[str, float]:
    return {
        "total_tok_s": round(taken["total_tok_s"], 1),
        "slowest_first_s": taken["first_token_s"][-1],
    }


def _ratios(our: list[Round], their: list[Round]) -> dict[str, Any]:
    each = [
        one["total_tok_s"] / other["total_tok_s"] for one, other in zip(our, their, strict=True)
    ]
    return {"median": median(each), "min": min(each), "max": max(each), "n": len(each)}


def _figures(taken: list[Round]) -> dict[str, float]:
    first = [seconds for one in taken for seconds in one["first_token_s"]]
    cuts = quantiles(first, n=20, method="inclusive")
    return {
        "total_tok_s": median(one["total_tok_s"] for one in taken),
        "first_token_p50_s": cuts[9],
        "first_token_p95_s": cuts[18],
    }
