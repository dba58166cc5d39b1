"""Open a checkpoint: threads read the file into the page cache ahead of llama.cpp, which maps it.

On network block devices, and on any disk with a queue, the number of reads in flight decides how
fast a file arrives; llama.cpp's mmap has one. So ``Prefetch`` starts before llama_cpp is even
imported and reads the file in order, which in a coldpress checkpoint is the order of execution.
"""

import json
import os
import threading
from pathlib import Path

from coldpress import libllama
from coldpress.errors import CorruptModelError, InputError, IntegrityError
from coldpress.serve.model import Model
from coldpress.serve.threads import usable_cpus

RANGE_BYTES = 8 << 20
_READ_AHEAD_KIB = 2048
_MAGIC = b"GGUF"


def locate(checkpoint: Path) -> Path:
    """The GGUF of a checkpoint: the file itself, or ``model.gguf`` in the folder.

    Raises:
        InputError: there is none, or it is not a GGUF.
        IntegrityError: its size is not what ``model.index.json`` says.
    """
    path = checkpoint / "model.gguf" if checkpoint.is_dir() else checkpoint
    try:
        with path.open("rb") as stream:
            magic = stream.read(len(_MAGIC))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", "give a checkpoint or a GGUF file") from error
    if magic != _MAGIC:
        raise InputError(f"{path} is not a GGUF file", "give a checkpoint or a GGUF file")
    _check_size(path)
    return path


def _check_size(path: Path) -> None:
    index = path.with_name("model.index.json")
    if path.name != "model.gguf" or not index.is_file():
        return
    try:
        expected = json.loads(index.read_bytes())["files"][0]["size_bytes"]
    except (ValueError, LookupError, TypeError) as error:
        raise IntegrityError(f"{index} is not an index: {error}", "build it again") from error
    if path.stat().st_size != expected:
        raise IntegrityError(
            f"{path} has {path.stat().st_size} bytes, its index says {expected}",
            "fetch or build the checkpoint again",
        )


class Prefetch:
    """Threads that read 8 MiB ranges of a file, in order, so that its pages are cached."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDONLY)
        self._ranges = iter(range(0, os.fstat(self._file).st_size, RANGE_BYTES))
        self._scratch = bytearray(RANGE_BYTES)
        self._lock = threading.Lock()
        self._stopped = False
        count = 0 if _kernel_reads_ahead(self._file) else max(4, min(16, 2 * usable_cpus()))
        self._threads = [threading.Thread(target=self._read, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _read(self) -> None:
        # All threads read into the same bytes, which nobody looks at: the page cache is the goal.
        while not self._stopped:
            with self._lock:
                offset = next(self._ranges, None)
            if offset is None:
                return
            try:
                os.preadv(self._file, [self._scratch], offset)
            except OSError:  # llama.cpp meets the same error and reports it
                return

    def close(self) -> None:
        """Stop reading ahead and close the file."""
        self._stopped = True
        for thread in self._threads:
            thread.join()
        os.close(self._file)


def _kernel_reads_ahead(file: int) -> bool:
    """Whether the device is set to read so far ahead that mmap alone keeps its queue full.

    With 8 MiB of it, copies to a scratch buffer made a cold load 1.5 to 2 times slower.
    """
    device = os.fstat(file).st_dev
    setting = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    try:
        return int(setting.read_text()) >= _READ_AHEAD_KIB
    except (OSError, ValueError):  # a network or overlay file system: unknown
        return False


def load(path: Path) -> Model:
    """Map a GGUF without repacking: a repacked copy multiplies load time by five and memory by 1.8.

    Raises:
        CorruptModelError: llama.cpp cannot load it.
    """
    lib = libllama.load()
    params = lib.llama_model_default_params()
    params.n_gpu_layers = 0
    params.load_mode = lib.LLAMA_LOAD_MODE_MMAP
    params.use_extra_bufts = False
    handle = lib.llama_model_load_from_file(os.fsencode(path), params)
    if not handle:
        raise CorruptModelError(f"llama.cpp cannot load {path}", "check it: coldpress verify")
    return Model(lib, handle, path)
