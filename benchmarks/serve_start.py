"""From a process's start to its first answer, beside llama-server, and what Lambda's path imports and keeps.

The file is in the page cache and Python's bytecode is compiled, as in an image. Servers take turns, each in a
fresh process; a client asks every 10 ms until it is answered.
"""

import compileall
import json
import os
import subprocess
import sys
import time
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import serve_models
from benchmarks.serve_client import body, until_answered
from benchmarks.serve_servers import Command, llama_server, ours, running
from coldpress.serve.aws.runtime_server import serving
from tests.lambda_calls import invoke

_PARALLEL, _CONTEXT = 4, 4096
_POLL_S = 0.002
_ROOT = Path(__file__).resolve().parents[1]
_ENTRY = (
    "from coldpress.serve import __main__; from coldpress.serve.aws import front, runtime_api; "
)
_IMPORTS = {
    "interpreter": "",
    "entry": _ENTRY,
    "all": _ENTRY + "from coldpress import libllama; libllama.load(); ",
}
_TELL = """
import time
now = time.monotonic()
for line in open("/proc/self/status"):
    if line.startswith("VmRSS"):
        print(now, int(line.split()[1]) * 1024)
"""
Run = dict[str, Any]


def starts(name: serve_models.Name, rounds: int) -> dict[str, Any]:
    """Seconds to the first answer over HTTP and to the first text, of ours and of llama-server."""
    compileall.compile_dir(_ROOT / "coldpress", quiet=1)
    gguf = serve_models.gguf(name)
    context = min(_CONTEXT, serve_models.vocabulary(name).context_tokens)
    asked = body(serve_models.prompts(name, 20, [0])[0], 2, serve_models.end_bias(name))
    runs: dict[str, list[Run]] = {}
    for turn in range(rounds):
        gguf.read_bytes()  # into the page cache
        for command in (
            ours(gguf, _PARALLEL, context),
            llama_server(gguf, _PARALLEL, context, repack=False),
            llama_server(gguf, _PARALLEL, context, repack=True),
        ):
            runs.setdefault(command.name, []).append(_start(command, asked))
            print(f"start {turn} {name} {command.name}: {runs[command.name][-1]}", file=sys.stderr)
    return {"runs": runs, "figures": {key: _medians(taken) for key, taken in runs.items()}}


def imports(rounds: int) -> dict[str, Any]:
    """What Lambda's path imports before the engine starts (``entry``), and with llama.cpp (``all``).

    Seconds and bytes beyond a bare interpreter's.
    """
    compileall.compile_dir(_ROOT / "coldpress", quiet=1)
    runs: dict[str, list[Run]] = {name: [] for name in _IMPORTS}
    for _ in range(rounds):
        for name, statements in _IMPORTS.items():
            runs[name].append(_import(statements))
    found = {
        name: {
            key: median(
                one[key] - bare[key] for one, bare in zip(taken, runs["interpreter"], strict=True)
            )
            for key in ("seconds", "rss_bytes")
        }
        for name, taken in runs.items()
        if name != "interpreter"
    }
    return {"runs": runs, "beyond_interpreter": found}


def memory(name: serve_models.Name) -> list[Run]:
    """What the Lambda runtime keeps in memory after an answer, with two lengths of context."""
    return [_keeps(name, context) for context in (512, _CONTEXT)]


def _start(command: Command, asked: dict[str, Any]) -> Run:
    began_s = time.monotonic()
    with running(command) as process:
        while not _answers(command.port):
            if process.poll() is not None:
                raise SystemExit(f"{command.name} ended with {process.returncode}")
            time.sleep(_POLL_S)
        listening_s = time.monotonic()
        answer = until_answered(command.port, asked, process)
    return {
        "listening_s": round(listening_s - began_s, 4),
        "first_token_s": round(answer.first_s - began_s, 4),
    }


def _answers(port: int) -> bool:
    """Whether it answers over HTTP, whatever it says."""
    try:
        with closing(HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
            connection.request("GET", "/health")
            connection.getresponse()
            return True
    except (OSError, HTTPException):
        return False


def _medians(taken: list[Run]) -> dict[str, float]:
    return {key: median(one[key] for one in taken) for key in taken[0]}


def _import(statements: str) -> Run:
    began_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", statements + _TELL], capture_output=True, text=True, check=True
    )
    ended_s, rss = done.stdout.split()
    return {"seconds": float(ended_s) - began_s, "rss_bytes": int(rss)}


def _keeps(name: serve_models.Name, context: int) -> Run:
    """A Lambda runtime asked once; resident bytes of its mappings."""
    argv = [sys.executable, "-m", "coldpress.serve", str(serve_models.gguf(name))]
    with serving() as api:
        process = subprocess.Popen(
            [*argv, "--context", str(context)],
            env={**os.environ, "AWS_LAMBDA_RUNTIME_API": api.address},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            posted = invoke(api, {"prompt": "The", "max_tokens": 8, "temperature": 0})
            json.loads(posted.body)["choices"]
            weights, total, anonymous = _resident(process.pid)
        finally:
            process.kill()
            process.wait()
    return {
        "context": min(context, serve_models.vocabulary(name).context_tokens),
        "rss_beyond_weights_bytes": total - weights,
        "anonymous_bytes": anonymous,
        "weights_resident_bytes": weights,
    }


def _resident(pid: int) -> tuple[int, int, int]:
    """Resident bytes of mapped GGUF files, of everything, and of anonymous memory."""
    weights = total = anonymous = 0
    mapped = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        match line.split():
            case [key, kilobytes, "kB"] if key == "Rss:":
                total += int(kilobytes) * 1024
                weights += int(kilobytes) * 1024 * mapped
            case [key, kilobytes, "kB"] if key == "Anonymous:":
                anonymous += int(kilobytes) * 1024
            case [span, *_] if "-" in span:
                mapped = line.endswith(".gguf")
    return weights, total, anonymous
