"""Open a checkpoint wherever it is: the fastest way for that place, chosen here and said in one line.

    page-cache  a local file: read ahead in execution order, mapped by llama.cpp meanwhile
    memory      pieces read in parallel, each proven on arrival, into a file in memory
    plain       llama.cpp alone: the file is in the page cache already, or nothing else is wanted

A remote checkpoint goes through memory, or is taken from the local cache. A file in memory is mapped while
it is being filled: to map it llama.cpp reads its header, and that is there first. So vocabulary, mapping
and context are made while weights arrive; nothing is computed before the last chunk is proven.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from coldpress import libllama
from coldpress.errors import (
    ColdpressError,
    InputError,
    IntegrityError,
    RemoteError,
    TooLargeError,
)
from coldpress.serve.load.address import Address
from coldpress.serve.load.fetch import SinkError
from coldpress.serve.load.file_source import FileSource
from coldpress.serve.load.filling import Filling
from coldpress.serve.load.later import Later
from coldpress.serve.load.mapping import load
from coldpress.serve.load.patience import PATIENT, Patience, Stop
from coldpress.serve.load.place import INDEX_NAME, Place, shards
from coldpress.serve.load.prefetch import Prefetch, is_cached, latency_s
from coldpress.serve.model import Model
from coldpress.serve.trace import Trace

Tier = Literal["auto", "page-cache", "memory", "plain"]
TIERS: tuple[Tier, ...] = ("auto", "page-cache", "memory", "plain")
_MAP_AT = 0.5
"""The share of a file that is there before it is mapped: the kernel clears each page that is not, which
takes longer than to map one that is. Later, and vocabulary and context would not be ready in time."""
_REMOTE_FIRST, _REMOTE_MOST = 8, 32
_DISK_FIRST, _DISK_MOST = 8, 32
_SWITCH_S = 0.0002
_NETWORK_S = 0.003
"""A device that needs longer for one small read is behind a network."""


class Closable(Protocol):
    """What a caller makes of a model; closed when another way must be tried."""

    def close(self) -> None:
        """Free it."""


Prepared = TypeVar("Prepared", bound=Closable)
Prepare = Callable[[Model], Prepared]


def open_model(
    place: Place,
    prepare: Prepare[Prepared],
    trace: Trace,
    *,
    tier: Tier = "auto",
    verify: bool = False,
    patience: Patience = PATIENT,
    stop: Stop | None = None,
) -> tuple[Model, Prepared]:
    """Load a model and prepare it for use.

    Args:
        prepare: makes a context of the model. The weights may not be there yet: it must not
            compute with them.
        tier: the way for a local file; "auto" chooses.
        verify: prove every chunk of a local file too; remote ones are, if they have digests.
        patience: with a server; ``stop`` ends it at once.

    Raises:
        ColdpressError: it cannot be loaded; the class says what to do.
    """
    with _eager_threads():
        if isinstance(place, Address):
            return _open_remote(place, prepare, trace, patience, stop or Stop())
        return _open_files(shards(place), prepare, trace, tier, verify=verify)


def _open_files(
    paths: Sequence[Path],
    prepare: Prepare[Prepared],
    trace: Trace,
    tier: Tier,
    *,
    verify: bool,
) -> tuple[Model, Prepared]:
    tier, why, slow = _choose(paths, tier)
    if tier == "memory":
        try:
            filling = Later(lambda: _into_memory(paths))
            with trace.span("import"):
                libllama.load()
            return _open_filling(filling.result(), str(paths[0]), why, prepare, trace)
        except (OSError, SinkError, RemoteError) as error:
            tier, why = "page-cache", f"memory failed: {error}"
    # Where the device is what takes time, proof costs none.
    verify = verify or (slow and paths[0].with_name(INDEX_NAME).is_file())
    return _open_local(paths, prepare, trace, (tier, why), verify=verify)


def _choose(paths: Sequence[Path], tier: Tier) -> tuple[Tier, str, bool]:
    """The tier, why, and whether the device is slow to answer."""
    if tier != "auto":
        return tier, "asked for", False
    if is_cached(paths):
        return "plain", "the file is in the page cache", False
    try:
        answer_s = latency_s(paths[0])
    except (OSError, IntegrityError):  # llama.cpp meets the same and says what is wrong
        return "plain", "the file cannot be read", False
    why = f"not in the page cache; its device answers in {answer_s * 1e3:.1f} ms"
    return "page-cache", why, answer_s > _NETWORK_S


def _open_local(
    paths: Sequence[Path],
    prepare: Prepare[Prepared],
    trace: Trace,
    choice: tuple[Tier, str],
    *,
    verify: bool,
) -> tuple[Model, Prepared]:
    tier, why = choice
    with contextlib.ExitStack() as stack:
        ahead = Prefetch(paths, prove=verify) if verify or tier != "plain" else None
        if ahead is not None:
            stack.callback(ahead.close)
        with trace.span("import"):
            libllama.load()
        if ahead is not None:
            ahead.wait_heads()
        with trace.span("load"):
            model = load(paths, str(paths[0]))
        with trace.span("context"):
            prepared = prepare(model)
        if ahead is not None and verify:
            with _closing_on_error(prepared):
                ahead.wait()
            ahead.note(trace)
    size = sum(path.stat().st_size for path in paths)
    trace.emit("loader", tier=tier, why=why, size_bytes=size, verified=verify)
    return model, prepared


def _open_remote(
    address: Address, prepare: Prepare[Prepared], trace: Trace, patience: Patience, stop: Stop
) -> tuple[Model, Prepared]:
    # These imports and the first answers take as long as llama.cpp's import: side by side.
    beginning = Later(lambda: _begin(address, patience, stop))
    with trace.span("import"):
        libllama.load()
    try:
        found = beginning.result()
        if isinstance(found, Filling):
            return _open_filling(found, str(address), "it is remote", prepare, trace)
    except SinkError as error:
        raise TooLargeError(
            f"{address} does not fit into memory: {error}", "give the machine more memory"
        ) from error
    choice: tuple[Tier, str] = "page-cache", "the local cache has it"
    return _open_local(found, prepare, trace, choice, verify=False)


def _begin(address: Address, patience: Patience, stop: Stop) -> Filling | tuple[Path, ...]:
    """Start to fetch; or the paths of what the local cache has already."""
    from coldpress.serve.load import model_cache, remote

    described = remote.describe(address, patience, stop)
    if kept := model_cache.find(described.contents):
        for source in described.sources:
            source.close()
        return kept
    return Filling(
        described.contents,
        described.sources,
        first=_REMOTE_FIRST,
        most=_REMOTE_MOST,
        cached=True,
    )


def _into_memory(paths: Sequence[Path]) -> Filling:
    """Start to read local files into memory, past the page cache; proven if they have an index."""
    from coldpress.serve.load.contents import of_files, of_folder

    try:
        contents = of_folder(paths[0])
    except InputError:
        contents = of_files(paths)
    sources = [FileSource(path, direct=True) for path in paths]
    return Filling(contents, sources, first=_DISK_FIRST, most=_DISK_MOST)


def _open_filling(
    filling: Filling, shown: str, why: str, prepare: Prepare[Prepared], trace: Trace
) -> tuple[Model, Prepared]:
    """Map files that are being filled; return when every byte is there and proven."""
    fetch = filling.fetch
    try:
        fetch.wait_heads()
        fetch.wait_share(_MAP_AT)
        with trace.span("load"):
            model = load(filling.paths, shown)
        if libllama.maps_only():
            with trace.span("context"):
                prepared = prepare(model)
            with _closing_on_error(prepared):
                fetch.wait()
        else:  # it has copied weights that were not there yet: once more
            fetch.wait()
            model = load(filling.paths, shown)
            with trace.span("context"):
                prepared = prepare(model)
        filling.note(trace)
    except ColdpressError:
        fetch.raise_failure()  # what came first explains the rest
        raise
    finally:
        filling.close()
    trace.emit(
        "loader",
        tier="memory",
        why=why,
        size_bytes=filling.contents.size_bytes,
        verified=filling.proven,
        fetched_bytes=fetch.fetched_bytes,
        most_in_flight=fetch.most_in_flight,
        retries=fetch.retries,
    )
    return model, prepared


@contextlib.contextmanager
def _eager_threads() -> Iterator[None]:
    """Let threads that ask for bytes interrupt the one that imports sooner than after Python's 5 ms."""
    usual_s = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(usual_s)


@contextlib.contextmanager
def _closing_on_error(prepared: Closable) -> Iterator[None]:
    try:
        yield
    except BaseException:
        prepared.close()
        raise
