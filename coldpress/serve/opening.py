"""What an engine works with: the model, its cache and what guesses, loaded from where they are."""

from dataclasses import dataclass
from functools import partial

from coldpress.serve import prefix
from coldpress.serve.draft import DraftModel
from coldpress.serve.load import loader
from coldpress.serve.load.patience import Stop
from coldpress.serve.load.place import Place
from coldpress.serve.model import Context, Model
from coldpress.serve.options import DEFAULT_CONTEXT, EngineOptions
from coldpress.serve.sequences import Sequences
from coldpress.serve.threads import usable_cpus
from coldpress.serve.trace import Trace


@dataclass(frozen=True)
class Opened:
    """A loaded model with its context.

    ``prompt_limit``: tokens that a prompt and its answer may have together. ``system_prompt``: what a
    chat without a system message gets, if something was shipped.
    """

    model: Model
    context: Context
    sequences: Sequences
    draft: DraftModel | None
    prompt_limit: int
    threads: int
    system_prompt: str | None


def open_all(place: Place, options: EngineOptions, trace: Trace, stop: Stop) -> Opened:
    """Load everything.

    Raises:
        ColdpressError: something cannot be loaded.
    """
    state = prefix.begin(place, options.parallel)
    threads = options.threads or usable_cpus()
    model, context = loader.open_model(
        place,
        partial(_context, options, threads),
        trace,
        tier=options.load,
        verify=options.verify,
        stop=stop,
    )
    limit = _prompt_limit(options, model)
    return Opened(
        model=model,
        context=context,
        sequences=Sequences(
            context,
            options.parallel,
            keeps=model.keeps_whole_context,
            prefix=_checked(state, model, trace),
        ),
        draft=DraftModel(options.draft, model, limit, threads) if options.draft else None,
        prompt_limit=limit,
        threads=threads,
        system_prompt=state.shipped.system_prompt if state else None,
    )


def _prompt_limit(options: EngineOptions, model: Model) -> int:
    return min(options.context or DEFAULT_CONTEXT, model.context_tokens)


def _context(options: EngineOptions, threads: int, model: Model) -> Context:
    cells = _prompt_limit(options, model)
    return Context(model, cells=cells, sequences=options.parallel, threads=threads)


def _checked(state: prefix.State | None, model: Model, trace: Trace) -> prefix.State | None:
    """The shipped prefix if it may be used; else one line says why not."""
    if state is None:
        return None
    problem = state.shipped.mismatch(model) or state.wait()
    if problem:
        trace.emit("prefix_unused", reason=problem)
        return None
    trace.mark("prefix")
    return state
