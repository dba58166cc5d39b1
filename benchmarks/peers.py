"""Build llama.cpp's own programs from the runtime's source distribution, once: the peers we measure against.

``python benchmarks/peers.py`` prints the folder that holds them.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from coldpress import libllama, tools, untar
from coldpress.cache import cache_dir
from coldpress.errors import ToolError

PROGRAMS = (
    "llama-perplexity",
    "llama-quantize",
    "llama-imatrix",
    "llama-completion",
    "llama-gguf-split",
)
BENCHMARKED = ("llama-bench", "llama-server")
"""Only ``benchmarks.serve`` asks for these; compiling the server takes as long as all the others."""
_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_OPENSSL=OFF",
)


def peers(programs: Sequence[str] = PROGRAMS) -> Path:
    """Return the folder with llama.cpp's programs, compiling those that miss (4 minutes).

    Raises:
        ToolError: the source distribution is not in the cache, or a compiler is missing.
    """
    version = libllama.version()
    folder = cache_dir() / "peers" / version
    missing = [program for program in programs if not (folder / program).is_file()]
    if not missing:
        return folder
    sdist = cache_dir() / "sdist" / f"llama_cpp_python-{version}.tar.gz"
    if not sdist.is_file():
        raise ToolError(f"{sdist} is missing", "run `make setup`")
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(sdist) as archive:
            untar.regular_files(archive, Path(scratch), max_bytes=1 << 30, max_files=20_000)
        source = Path(scratch) / f"llama_cpp_python-{version}" / "vendor" / "llama.cpp"
        _build(source, Path(scratch) / "build", missing, folder)
    return folder


def environment() -> dict[str, str]:
    """The environment that a user's shell gives a peer.

    Importing coldpress tells libgomp to spin less, and child processes inherit that.
    """
    return {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}


def perplexity(gguf: Path, text: Path, *options: str | int) -> tuple[float, float]:
    """Perplexity and its standard error by ``llama-perplexity``, attention and KV cache in float32.

    It is asked again when it says nothing: its log thread may drop the last line when it exits.
    Without repacking, whose AMX kernels end in an illegal instruction on some virtual machines.
    """
    argv = [peers() / "llama-perplexity", "-m", gguf, "-f", text, "--no-repack"]
    exact = ["-fa", "off", "-ctk", "f32", "-ctv", "f32", *map(str, options)]
    for _ in range(20):
        done = subprocess.run([*argv, *exact], capture_output=True, text=True, check=True)
        if match := re.search(r"PPL = ([\d.]+) \+/- ([\d.]+)", done.stdout + done.stderr):
            return float(match[1]), float(match[2])
    raise ToolError(f"llama-perplexity gives no figure for {gguf}: {done.stderr[-500:]}")


def _build(source: Path, build: Path, programs: list[str], folder: Path) -> None:
    cmake = tools.find("cmake", "install cmake and a C++ compiler")
    tools.run([cmake, "-S", source, "-B", build, *_OPTIONS], timeout_s=600)
    jobs = str((os.cpu_count() or 1) + 1)
    tools.run([cmake, "--build", build, "-j", jobs, "--target", *programs], timeout_s=3600)
    folder.mkdir(parents=True, exist_ok=True)
    for program in programs:
        partial = folder / f"{program}.partial"
        shutil.copy2(build / "bin" / program, partial)
        partial.rename(folder / program)


if __name__ == "__main__":
    print("compiling llama.cpp's programs unless cached ...", file=sys.stderr)
    print(peers())
