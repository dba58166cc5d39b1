"""Open a checkpoint wherever it is: the fastest way for that place, chosen here and said in one line.

    page-cache  a local file: read ahead in execution order, mapped by llama.cpp meanwhile
    memory      pieces read in parallel, each proven on arrival, into a file in memory
    cache       the same into the local cache of remote checkpoints
    plain       llama.cpp alone: the file is in the page cache already, or nothing else is wanted

A file is mapped while it is still being filled: to map it llama.cpp reads its header, and that is
there first. So vocabulary, mapping and context are made while the weights arrive; nothing is
computed before the last chunk is proven.
"""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from coldpress import libllama
from coldpress.errors import ColdpressError, InputError, RemoteError
from coldpress.serve.address import Address
from coldpress.serve.fetch import SinkError
from coldpress.serve.file_source import FileSource
from coldpress.serve.filling import Filling
from coldpress.serve.later import Later
from coldpress.serve.mapping import load
from coldpress.serve.model import Model
from coldpress.serve.patience import PATIENT, Patience
from coldpress.serve.place import Place, shards
from coldpress.serve.prefetch import Prefetch, is_cached
from coldpress.serve.trace import Trace

Tier = Literal["auto", "page-cache", "memory", "plain"]
TIERS: tuple[Tier, ...] = ("auto", "page-cache", "memory", "plain")
_REMOTE_FIRST, _REMOTE_MOST = 8, 32
_DISK_FIRST, _DISK_MOST = 4, 32


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
) -> tuple[Model, Prepared]:
    """Load a model and prepare it for use.

    Args:
        prepare: makes a context of the model. The weights may not be there yet: it must not
            compute with them.
        tier: the way for a local file; "auto" chooses.
        verify: prove every chunk of a local file too; remote ones are, if they have digests.
        patience: with a server.

    Raises:
        ColdpressError: it cannot be loaded; the class says what to do.
    """
    if isinstance(place, Address):
        return _open_remote(place, prepare, trace, patience)
    paths = shards(place)
    if tier == "memory":
        try:
            filling = Later(lambda: _into_memory(paths))
            with trace.span("import"):
                libllama.load()
            return _open_filling(filling.result(), str(place), "asked for", prepare, trace)
        except (OSError, SinkError, RemoteError) as error:
            tier, why = "page-cache", f"memory failed: {error}"
    else:
        tier, why = _choose(paths, tier)
    return _open_local(paths, prepare, trace, (tier, why), verify=verify)


def _choose(paths: Sequence[Path], tier: Tier) -> tuple[Tier, str]:
    if tier != "auto":
        return tier, "asked for"
    if is_cached(paths):
        return "plain", "the file is in the page cache"
    return "page-cache", "the file is not in the page cache"


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
        proof: Prefetch | None = None
        if verify:
            from coldpress.serve.contents import of_folder

            proof = Prefetch(paths, of_folder(paths[0]))
            stack.callback(proof.close)
        elif tier != "plain":
            stack.callback(Prefetch(paths).close)
        with trace.span("import"):
            libllama.load()
        with trace.span("load"):
            model = load(paths, str(paths[0]))
        with trace.span("context"):
            prepared = prepare(model)
        if proof is not None:
            with _closing_on_error(prepared):
                proof.wait()
            proof.note(trace)
    size = sum(path.stat().st_size for path in paths)
    trace.emit("loader", tier=tier, why=why, size_bytes=size, verified=verify)
    return model, prepared


def _open_remote(
    address: Address, prepare: Prepare[Prepared], trace: Trace, patience: Patience
) -> tuple[Model, Prepared]:
    # These imports and the first answers take as long as llama.cpp's import: side by side.
    beginning = Later(lambda: _begin(address, patience))
    with trace.span("import"):
        libllama.load()
    found = beginning.result()
    if not isinstance(found, Filling):
        choice: tuple[Tier, str] = "page-cache", "the local cache has it"
        return _open_local(found, prepare, trace, choice, verify=False)
    why = "fetched into the local cache" if found.is_cached else "fetched; not cached on a disk"
    try:
        return _open_filling(found, str(address), why, prepare, trace)
    except SinkError as error:
        again = _begin(address, patience, cached=False)
        if not isinstance(again, Filling):
            raise ColdpressError("no way is left to load it", "report this") from error
        why = f"the local cache failed: {error}"
        return _open_filling(again, str(address), why, prepare, trace)


def _begin(
    address: Address, patience: Patience, *, cached: bool = True
) -> Filling | tuple[Path, ...]:
    """Start to fetch; or the paths of what the local cache has already."""
    from coldpress.serve import model_cache, remote

    described = remote.describe(address, patience)
    claim = model_cache.claim(described.contents) if cached else None
    if isinstance(claim, model_cache.Hit):
        for source in described.sources:
            source.close()
        return claim.paths
    return Filling(
        described.contents, described.sources, claim, first=_REMOTE_FIRST, most=_REMOTE_MOST
    )


def _into_memory(paths: Sequence[Path]) -> Filling:
    """Start to read local files into memory, past the page cache; proven if they have an index."""
    from coldpress.serve.contents import of_files, of_folder

    try:
        contents = of_folder(paths[0])
    except InputError:
        contents = of_files(paths)
    sources = [FileSource(path, direct=True) for path in paths]
    return Filling(contents, sources, None, first=_DISK_FIRST, most=_DISK_MOST)


def _open_filling(
    filling: Filling, shown: str, why: str, prepare: Prepare[Prepared], trace: Trace
) -> tuple[Model, Prepared]:
    """Map files that are being filled; return when every byte is there and proven."""
    fetch = filling.fetch
    try:
        fetch.wait_heads()
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
        tier="cache" if filling.is_cached else "memory",
        why=why,
        size_bytes=filling.contents.size_bytes,
        verified=filling.proven,
        fetched_bytes=fetch.fetched_bytes,
        most_in_flight=fetch.most_in_flight,
        retries=fetch.retries,
    )
    return model, prepared


@contextlib.contextmanager
def _closing_on_error(prepared: Closable):  # type: ignore[no-untyped-def]
    try:
        yield
    except BaseException:
        prepared.close()
        raise
