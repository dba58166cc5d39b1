"""llama.cpp's own converter, out of the source distribution that the runtime was built from.

The converter is in no wheel. The runtime's source distribution has it at exactly the runtime's
commit, so its three paths are unpacked into the cache and it is run as a program, never vendored.
"""

import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

from coldpress import libllama, tools, untar
from coldpress.artifact import sha256_file
from coldpress.cache import cache_dir
from coldpress.errors import IntegrityError, ToolError, UsageError
from coldpress.progress import note

# Sha256 of the source distributions that were reviewed; others are used unpinned, with a note.
KNOWN_SDISTS = {
    "0.3.36": "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
}
_SCRIPT = "convert_hf_to_gguf.py"
_KEPT = (_SCRIPT, "conversion", "gguf-py")
_MAX_UNPACKED_BYTES = 256 << 20
_MAX_FILES = 5000
_DOWNLOAD_TIMEOUT_S = 900.0
_CONVERT_TIMEOUT_S = 6 * 3600.0


def source_tree(override: str | None) -> Path:
    """The folder of ``convert_hf_to_gguf.py``: ``override``, else the cached tree.

    Raises:
        UsageError: ``override`` is not a llama.cpp checkout with the split converter.
        ToolError: the source distribution cannot be fetched.
        IntegrityError: it is not the reviewed file.
    """
    if override is not None:
        tree = Path(override)
        if not (tree / _SCRIPT).is_file() or not (tree / "conversion" / "base.py").is_file():
            raise UsageError(
                f"{tree} has no {_SCRIPT} with a conversion folder",
                "give the folder of a llama.cpp checkout from 2026 or newer",
            )
        return tree
    version = libllama.version()
    tree = cache_dir() / "converter" / version
    if not tree.is_dir():
        _unpack(_sdist(version), tree)
    return tree


def run(tree: Path, model: Path, gguf: Path, outtype: str, pre_tokenizer: str | None) -> None:
    """Convert ``model`` to ``gguf`` with the converter in ``tree``.

    Args:
        pre_tokenizer: the BPE pre-tokenizer's name where the converter would not recognise it.

    Raises:
        ToolError: the converter fails.
    """
    script: list[str | Path] = [tree / _SCRIPT]
    if pre_tokenizer is not None:
        script = [Path(__file__).with_name("run_upstream.py"), tree / _SCRIPT, pre_tokenizer]
    tools.run(
        [sys.executable, *script, model, "--outfile", gguf, "--outtype", outtype],
        timeout_s=_CONVERT_TIMEOUT_S,
        install="that is llama.cpp's converter; try a newer one with --llama-cpp",
        env={"PYTHONPATH": str(tree / "gguf-py")},
    )


def _sdist(version: str) -> Path:
    """The runtime's source distribution, downloaded with pip when the cache has none."""
    folder = cache_dir() / "sdist"
    path = folder / f"llama_cpp_python-{version}.tar.gz"
    if not path.is_file():
        note(f"  fetching llama.cpp's converter (source of llama-cpp-python {version})")
        folder.mkdir(parents=True, exist_ok=True)
        _download(version, folder)
    if not path.is_file():
        raise ToolError(f"pip did not bring {path.name}", "give --llama-cpp a llama.cpp checkout")
    expected = KNOWN_SDISTS.get(version)
    if expected is None:
        note(
            f"  note: llama-cpp-python {version} is not a reviewed version; its source is unpinned"
        )
    elif sha256_file(path) != expected:
        raise IntegrityError(f"{path} is not the published source", "delete it and try again")
    return path


def _download(version: str, folder: Path) -> None:
    """Download into a folder beside, then rename, so that a broken download is never found."""
    with tempfile.TemporaryDirectory(dir=folder) as partial:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", partial]
        # The source of this one alone: ":all:" would build its build tools from source as well.
        tools.run(
            [*pip, "--no-binary", "llama-cpp-python", f"llama-cpp-python=={version}"],
            timeout_s=_DOWNLOAD_TIMEOUT_S,
            install="check the network, or give --llama-cpp a llama.cpp checkout",
        )
        for path in Path(partial).glob("*.tar.gz"):
            path.rename(folder / path.name)


def _unpack(sdist: Path, tree: Path) -> None:
    """Unpack the converter's paths from a source distribution; whole by rename, or not at all."""
    tree.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=tree.parent) as partial:
        fresh = Path(partial) / "tree"
        with tarfile.open(sdist, "r:gz") as archive:
            untar.regular_files(
                archive,
                fresh,
                place=_inner_path,
                max_bytes=_MAX_UNPACKED_BYTES,
                max_files=_MAX_FILES,
            )
        if not (fresh / _SCRIPT).is_file():
            raise IntegrityError(f"{sdist} holds no {_SCRIPT}", "delete it and try again")
        if not tree.is_dir():  # Another process may have been faster.
            fresh.rename(tree)


def _inner_path(name: str) -> str | None:
    """``<top>/vendor/llama.cpp/<kept>`` without its first three parts, None for any other path."""
    parts = PurePosixPath(name).parts
    if len(parts) < 4 or parts[1:3] != ("vendor", "llama.cpp") or parts[3] not in _KEPT:
        return None
    return str(PurePosixPath(*parts[3:]))
