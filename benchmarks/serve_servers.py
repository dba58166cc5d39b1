"""The servers that are compared, each as a process with the same model, context per stream and threads."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers import BENCHMARKED, environment, peers
from tests.containers import free_port

THREADS = 2
_STOP_S = 30
# Our wheel has a backend per instruction set, which llama_cpp.server does not know to load.
_WITH_BACKENDS = """
import os, runpy
from coldpress import libllama
os.environ.pop("GOMP_SPINCOUNT")
libllama.load()
runpy.run_module("llama_cpp.server", run_name="__main__")
"""


@dataclass(frozen=True)
class Command:
    """How to start a server; ``name`` stands in the report."""

    name: str
    argv: tuple[str, ...]
    port: int


def ours(gguf: Path, parallel: int, context: int) -> Command:
    """Our runtime, as an image starts it."""
    port = free_port()
    argv = [sys.executable, "-m", "coldpress.serve", str(gguf), "--port", str(port), "--quiet"]
    argv += ["--parallel", str(parallel), "--context", str(context), "--threads", str(THREADS)]
    return Command("coldpress", tuple(argv), port)


def llama_server(gguf: Path, parallel: int, context: int, *, repack: bool) -> Command:
    """llama.cpp's server with as many slots of the same context."""
    port = free_port()
    argv = [str(peers(BENCHMARKED) / "llama-server"), "-m", str(gguf), "--port", str(port)]
    argv += ["-np", str(parallel), "-c", str(parallel * context), "-t", str(THREADS)]
    argv += ["--no-kv-unified", "--no-ui", *([] if repack else ["--no-repack"])]
    return Command(f"llama-server{', repacking' * repack}", tuple(argv), port)


def llama_cpp_server(python: str, gguf: Path, context: int) -> Command:
    """llama-cpp-python's server, told to finish an answer before it begins another one."""
    port = free_port()
    argv = [python, "-c", _WITH_BACKENDS, "--model", str(gguf), "--port", str(port)]
    argv += ["--n_ctx", str(context), "--n_threads", str(THREADS)]
    argv += ["--n_threads_batch", str(THREADS), "--interrupt_requests", "False"]
    return Command("llama_cpp.server", tuple(argv), port)


@contextmanager
def running(command: Command) -> "Iterator[subprocess.Popen[bytes]]":
    """Start it now and stop it at the end; what it said is shown if it ended by itself."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command.argv, env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            yield process
        finally:
            if process.poll() is not None:
                log.seek(0)
                print(log.read().decode(errors="replace")[-2000:], file=sys.stderr)
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
