"""The one door to llama.cpp's libraries, wherever the wheel put them.

A wheel built for every CPU keeps one backend per instruction set in ``site-packages/bin`` and loads
none of them by itself; they must be registered before the first model, and through the very library
that libllama links (``libggml.so.0``: the wheel holds copies under three names, and each copy has
its own registry).
"""

import ctypes
import importlib.util
import re
import sys
from collections.abc import Callable
from functools import cache, partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from coldpress.errors import ToolError

_PACKAGE = "llama_cpp"
_CPU = 0
"""``GGML_BACKEND_DEVICE_TYPE_CPU``"""
_VERSION = re.compile(r'^__version__ = "(.+)"$', re.MULTILINE)
_VARIANT = re.compile(r"libggml-cpu-(\w+)\.so")


@cache
def load() -> Any:
    """llama_cpp's C functions, with a CPU backend registered and its log silent.

    Raises:
        ToolError: llama-cpp-python is not installed, or no backend of it runs on this CPU.
    """
    lib = _bindings()
    _silence(lib)
    _register_backends(library_dir().parent)
    lib.llama_backend_init()
    return lib


def _bindings() -> Any:
    """llama_cpp's C functions without its package: that imports numpy, jinja2 and a chat framework first.

    They take three times as long as the rest of the import, and every cold start would wait for them.
    """
    name = f"{_PACKAGE}.llama_cpp"
    if _PACKAGE in sys.modules:
        return importlib.import_module(name)
    # An empty package stands in; whoever imports it later gets all of it.
    sys.modules[_PACKAGE] = importlib.util.module_from_spec(_package())
    try:
        return importlib.import_module(name)
    finally:
        sys.modules.pop(_PACKAGE, None)


def _package() -> ModuleSpec:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise ToolError("llama-cpp-python is not installed", "pip install coldpress")
    return spec


def library_dir() -> Path:
    """The folder of libllama.so and libggml-base.so."""
    return Path(str(_package().origin)).parent / "lib"


def version() -> str:
    """The installed llama-cpp-python's version; it fixes the llama.cpp commit."""
    # Read, because to import the package or importlib.metadata costs a cold start 40 ms and more.
    found = _VERSION.search(Path(str(_package().origin)).read_text(encoding="utf-8"))
    return found[1] if found else "unknown"


def cpu_variant() -> str:
    """The CPU backend in use: its instruction-set variant (``zen4``), ``native`` for a native build.

    ``unknown`` where there is no /proc.
    """
    load()
    try:
        with Path("/proc/self/maps").open() as maps:
            found = {match[1] for line in maps if (match := _VARIANT.search(line))}
    except OSError:
        return "unknown"
    return ",".join(sorted(found)) or "native"


def maps_only() -> bool:
    """Whether loading with mmap leaves all weights where they are: no device wants a copy of its own."""
    load()
    lib = ggml()
    lib.ggml_backend_dev_count.restype = ctypes.c_size_t
    lib.ggml_backend_dev_get.restype = ctypes.c_void_p
    lib.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    lib.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    devices = map(lib.ggml_backend_dev_get, range(lib.ggml_backend_dev_count()))
    return all(lib.ggml_backend_dev_type(device) == _CPU for device in devices)


def backends() -> list[Path]:
    """The CPU backends that the wheel holds, one per instruction set; none in a native build."""
    return sorted((library_dir().parent.parent / "bin").glob("libggml-cpu-*.so"))


def register(backend: Path) -> bool:
    """Take this CPU backend instead of the best one; before ``load``. False: this CPU cannot run it."""
    lib = ggml()
    lib.ggml_backend_load.restype = ctypes.c_void_p
    lib.ggml_backend_load.argtypes = [ctypes.c_char_p]
    return bool(lib.ggml_backend_load(str(backend).encode()))


def ggml() -> ctypes.CDLL:
    """The ggml library that libllama links; what it depends on is reached through it too."""
    lib = library_dir()
    exact = lib / "libggml.so.0"
    return ctypes.CDLL(str(exact if exact.exists() else lib / "libggml.so"))


def _register_backends(package: Path) -> None:
    lib = ggml()
    lib.ggml_backend_reg_count.restype = ctypes.c_size_t
    if lib.ggml_backend_reg_count() == 0:
        lib.ggml_backend_load_all_from_path.argtypes = [ctypes.c_char_p]
        lib.ggml_backend_load_all_from_path(str(package.parent / "bin").encode())
    if lib.ggml_backend_reg_count() == 0:
        raise ToolError(
            "no llama.cpp backend runs on this CPU",
            "x86-64 with SSE4.2 or newer, or Armv8, is needed; see `make setup` for the wheel",
        )


_LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
# Errors come back as return codes, so the log is dropped. Kept here: llama.cpp holds the pointer.
_no_log = _LogCallback(lambda _level, _text, _data: None)


def _silence(lib: Any) -> None:
    lib.llama_log_set(_no_log, None)


def kernel_switch(context: Any) -> Callable[[bool], None]:
    """Tell a context's CPU backend whether each row of a batch is to be computed by itself.

    By itself: with ggml's reference kernels, of which none treats a row in another way because others
    are in the batch; else with those that are fastest for many rows.

    Args:
        context: a llama_context.

    Raises:
        ToolError: this libllama does not give its scheduler away.
    """
    try:
        # The scheduler has no C function; C++ exports it.
        get_sched = ctypes.CDLL(str(library_dir() / "libllama.so"))._ZNK13llama_context9get_schedEv
    except AttributeError as error:
        raise ToolError(f"libllama {version()} is unknown", "see runtime.txt") from error
    get_sched.restype, get_sched.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    lib = ggml()

    def function(name: str, restype: Any, *argtypes: Any) -> Any:
        found = getattr(lib, name)
        found.restype, found.argtypes = restype, argtypes
        return found

    pointer = ctypes.c_void_p
    count = function("ggml_backend_sched_get_n_backends", ctypes.c_int, pointer)
    backend_at = function("ggml_backend_sched_get_backend", pointer, pointer, ctypes.c_int)
    device_of = function("ggml_backend_get_device", pointer, pointer)
    registry_of = function("ggml_backend_dev_backend_reg", pointer, pointer)
    find = function("ggml_backend_reg_get_proc_address", pointer, pointer, ctypes.c_char_p)
    scheduler = get_sched(ctypes.cast(context, pointer))
    for backend in [backend_at(scheduler, index) for index in range(count(scheduler))]:
        address = find(registry_of(device_of(backend)), b"ggml_backend_cpu_set_use_ref")
        if address:
            switch = ctypes.CFUNCTYPE(None, pointer, ctypes.c_bool)(address)
            return partial(switch, backend)
    raise ToolError("llama.cpp runs on another device than the CPU", "see runtime.txt")
