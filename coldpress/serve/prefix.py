"""The KV state of a system prompt, evaluated when the image was built: ``prefix.kv`` and its key.

A prompt that begins with the prefix's tokens starts from this state instead of reading them again.
The state is used only where reading them again would give the same bits; ``prefix.json`` says where
that is, and everything in it must be true of the model that was loaded and of this machine.
"""

import ctypes
import hashlib
import json
import os
import struct
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coldpress import libllama
from coldpress.errors import IntegrityError
from coldpress.serve.load.place import Place
from coldpress.serve.model import CHUNK_TOKENS, Model

STATE_NAME = "prefix.kv"
KEY_NAME = "prefix.json"
FORMAT_VERSION = 1
MIN_ROWS = 64
"""From so many tokens in a batch ggml's kernels round each row in the same way, however many there are."""
_MAX_KEY_BYTES = 32 << 20
_MAX_STATE_BYTES = 1 << 36
_STREAMS_AT = 8
"""Where llama.cpp's sequence state says of how many streams it is; magic and sequence come before."""
_AGAIN = "fetch it again, or package it again"


@dataclass(frozen=True)
class Shipped:
    """What ``prefix.json`` says: whose state it is, and of which prompt.

    A short prompt has no state: then there are no ``tokens``.
    """

    system_prompt: str
    tokens: list[int]
    size_bytes: int
    kv_sha256: str
    key: dict[str, Any]

    def encode(self) -> bytes:
        """The file's bytes, its own digest among them."""
        plain: dict[str, Any] = {"format_version": FORMAT_VERSION, **vars(self)}
        return json.dumps({**plain, "sha256": _digest(plain)}, indent=1).encode() + b"\n"

    def start(self, prompt: list[int]) -> tuple[int, int]:
        """How many tokens of a prompt come from the state, and where the chunk after them ends.

        Without the state, chunks end at multiples of ``CHUNK_TOKENS``. Other cuts give the same bits
        while no chunk is shorter than ``MIN_ROWS``, so the rest of the chunk in which the prefix ends
        is read together with the next where it can be, and is lengthened where it must be.

        Returns:
            (0, 0) for a prompt that does not begin with the prefix, or has nothing after it.
        """
        count, length = len(self.tokens), len(prompt)
        if not count or length <= count or prompt[:count] != self.tokens:
            return 0, 0
        border = -(-count // CHUNK_TOKENS) * CHUNK_TOKENS
        if border == count:
            return count, min(length, count + CHUNK_TOKENS)
        if length - border >= MIN_ROWS and length - count <= CHUNK_TOKENS:
            return count, length
        end = min(length, border)
        return min(count, end - MIN_ROWS), end

    def mismatch(self, model: Model) -> str | None:
        """Why the state is not what this model would compute here; None if it is."""
        if not self.tokens:
            return None
        now = key(model)
        here, made_for = cpu(), self.key.get("cpus", [])
        if here not in made_for:
            kinds = ", ".join(str(each.get("variant")) for each in made_for)
            return f"the CPU takes {here['variant']}, the prefix is for {kinds}"
        for name in sorted(now.keys() | self.key.keys() - {"cpus"}):
            if now.get(name) != self.key.get(name):
                return f"{name} is {_short(now.get(name))}, the prefix has {_short(self.key.get(name))}"
        return None


def cpu() -> dict[str, str]:
    """The CPU backend in use: kernels of other instruction sets may round otherwise."""
    features = libllama.load().llama_print_system_info().decode(errors="replace").strip()
    return {"variant": libllama.cpu_variant(), "features": features}


def key(model: Model) -> dict[str, Any]:
    """Everything that the bits of a KV state depend on, beside its tokens and the CPU.

    The number of cells, of sequences and of threads is not in it: they change no bit (a test
    shows it). The C library is, because ggml takes sines and exponentials from it.
    """
    template = (model.chat_template or "").encode()
    return {
        # Of the header, which holds the root of all chunks: weights, metadata and shards.
        "model_header_sha256": model.metadata("coldpress.header_sha256"),
        "template_sha256": hashlib.sha256(template).hexdigest(),
        "context": model.context_options(),
        "llama_cpp": libllama.version(),
        "libc": os.confstr("CS_GNU_LIBC_VERSION"),
    }


def find(gguf: Path) -> Shipped | None:
    """The key that lies beside a model; None if none was shipped.

    Raises:
        IntegrityError: it is damaged, and with it the system prompt that chats should get.
    """
    path = gguf.with_name(KEY_NAME)
    try:
        with path.open("rb") as stream:
            raw = stream.read(_MAX_KEY_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise IntegrityError(f"{path}: {error.strerror}", _AGAIN) from error
    return parse(raw, str(path))


def parse(raw: bytes, where: str) -> Shipped:
    """Read a key's bytes; see ``find``."""
    try:
        if len(raw) > _MAX_KEY_BYTES:
            raise ValueError("it is too large")
        data = json.loads(raw)
        digest = data.pop("sha256")
        if data.pop("format_version") != FORMAT_VERSION:
            raise ValueError("its format is another")
        if digest != _digest({"format_version": FORMAT_VERSION, **data}):
            raise ValueError("its digest differs")
        shipped = Shipped(**data)
        if not 0 <= shipped.size_bytes <= _MAX_STATE_BYTES:
            raise ValueError("its size is senseless")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise IntegrityError(f"{where} is damaged: {error}", _AGAIN) from error
    return shipped


def begin(place: Place, sequences: int) -> "State | None":
    """Begin to read the prefix that lies beside a local model; None if there is none.

    Raises:
        IntegrityError: see ``find``.
    """
    # Only an image has a prefix: what is fetched from elsewhere is weights.
    shipped = find(place) if isinstance(place, Path) else None
    return State(place, shipped, sequences) if isinstance(place, Path) and shipped else None


class State:
    """``prefix.kv`` in memory, read and checked by a thread while the model is being loaded.

    Args:
        gguf: the model that it lies beside.
        sequences: of the context that it will be restored into.
    """

    def __init__(self, gguf: Path, shipped: Shipped, sequences: int) -> None:
        self.shipped = shipped
        self._path = gguf.with_name(STATE_NAME)
        self._sequences = sequences
        self._buffer: Any = None
        self._problem: str | None = f"{self._path} was not read"
        self._thread = threading.Thread(target=self._read, name="prefix", daemon=True)
        self._thread.start()

    def wait(self) -> str | None:
        """Wait until it is read; why it cannot be used, or None."""
        self._thread.join()
        return self._problem

    @property
    def buffer(self) -> Any:
        """The state as a ctypes array; exists after ``wait`` has returned None."""
        return self._buffer

    def _read(self) -> None:
        try:
            self._problem = self._fill()
        except (OSError, MemoryError) as error:
            self._problem = f"{self._path}: {error!r}"

    def _fill(self) -> str | None:
        size = self.shipped.size_bytes
        with self._path.open("rb") as stream:
            if os.fstat(stream.fileno()).st_size != size:
                return f"{self._path} is not of {size} bytes"
            buffer = bytearray(size)
            stream.readinto(buffer)
        if hashlib.sha256(buffer).hexdigest() != self.shipped.kv_sha256:
            return f"{self._path} differs from its sha256"
        if self.shipped.tokens:
            self._buffer = widen(buffer, self._sequences)
        return None


def widen(state: bytearray, sequences: int) -> Any:
    """A sequence's state from a context of one sequence, for a context of several.

    llama.cpp lists a count of cells per stream, and reads those of the one that is not empty into
    whatever sequence is asked for.
    """
    if struct.unpack_from("<I", state, _STREAMS_AT) != (1,):
        return (ctypes.c_uint8 * len(state)).from_buffer(state)  # llama.cpp will refuse it
    struct.pack_into("<I", state, _STREAMS_AT, sequences)
    state += bytes(4 * (sequences - 1))
    return (ctypes.c_uint8 * len(state)).from_buffer(state)


def _digest(plain: dict[str, Any]) -> str:
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
