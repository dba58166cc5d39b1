"""How the next token is chosen: libllama's own samplers, and no logits in Python unless asked for.

They are asked for by ``logprobs`` and by a constraint; then the same samplers choose among the tokens
that the constraint allows.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import finalize

from coldpress.serve.constraint import Matcher
from coldpress.serve.speculation import Speculate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from coldpress.serve.model import Context, Model

    Floats = NDArray[np.float32]


_64_BITS = (1 << 64) - 1
_PENALIZED_TOKENS = 4096
"""Penalties look back so far; OpenAI's over the whole answer."""


@dataclass(frozen=True)
class GenerateOptions:
    """One request's choices; temperature 0 takes the most likely token.

    The defaults of ``temperature`` and ``top_p`` are OpenAI's, those of ``top_k`` and ``min_p``
    (unknown to OpenAI's API) llama.cpp's.
    """

    max_tokens: int = 512
    """Cut to what the context leaves."""
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these."""
    temperature: float = 1.0
    top_k: int = 40
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    min_p: float = 0.05
    seed: int = 0
    """Fixes, with a token's place in the answer, what is drawn for it."""
    repeat_penalty: float = 1.0
    """Divides the logits of tokens that the answer has already (multiplies negative ones)."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each time that the answer has it."""
    presence_penalty: float = 0.0
    """Subtracted once if it has it at all."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Added to the logits of tokens, whatever else is chosen."""
    logprobs: int | None = None
    """Report each token's log-probability and those of so many of the likeliest; None reports none."""
    speculate: Speculate | None = None
    """How the next tokens are guessed; None: as the engine is set to."""
    spelled: tuple[int, ...] = ()
    """Control tokens that are written out; others are silent."""


@dataclass(frozen=True)
class Choice:
    """The chosen token; with log-probabilities, by the model alone, if they were asked for."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """One generation's samplers, freed with it.

    Args:
        matcher: allows what its grammar allows; None allows every token.
    """

    def __init__(self, model: "Model", options: GenerateOptions, matcher: Matcher | None) -> None:
        self._lib = model.lib
        self._options = options
        self._matcher = matcher
        self._chain = _chain(model, options)
        self._n_chosen = 0
        finalize(self, model.lib.llama_sampler_free, self._chain).atexit = False

    def choose(self, context: "Context", row: int) -> Choice:
        """Choose the token after a row of the last batch, and remember it.

        Raises:
            GrammarError: the constraint has become too complex to follow.
        """
        if self._options.temperature > 0:
            self._draw_by(_seed_of(self._options.seed, self._n_chosen))
        if self._matcher is None and self._options.logprobs is None:
            self._n_chosen += 1
            return Choice(context.sample(self._chain, row))
        logits = context.logits(row)
        token = self._among_allowed(logits)
        self.accept(token)
        return _described(logits, token, self._options.logprobs)

    def accept(self, token: int) -> None:
        """Remember a token as chosen.

        Raises:
            GrammarError: the constraint does not allow it, or has become too complex.
        """
        self._n_chosen += 1
        self._lib.llama_sampler_accept(self._chain, token)
        if self._matcher is not None:
            self._matcher.accept(token)

    def _draw_by(self, seed: int) -> None:
        """Put another generator of random numbers at the end of the chain.

        One for each token: what is drawn for it then hangs on its place alone, and an answer can be
        gone on with elsewhere without the state of a generator.
        """
        lib, last = self._lib, self._lib.llama_sampler_chain_n(self._chain) - 1
        lib.llama_sampler_free(lib.llama_sampler_chain_remove(self._chain, last))
        lib.llama_sampler_chain_add(self._chain, lib.llama_sampler_init_dist(seed))

    @property
    def finished(self) -> bool:
        """Whether the constraint allows nothing more."""
        return self._matcher is not None and self._matcher.finished

    def _among_allowed(self, logits: "Floats") -> int:
        import ctypes

        import numpy as np

        allowed = (
            np.arange(len(logits), dtype=np.int32)
            if self._matcher is None
            else self._matcher.allowed(len(logits))
        )
        candidates = np.zeros(len(allowed), [("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])
        candidates["id"], candidates["logit"] = allowed, logits[allowed]
        array = self._lib.llama_token_data_array(
            data=candidates.ctypes.data_as(ctypes.POINTER(self._lib.llama_token_data)),
            size=len(candidates),
            selected=-1,
            sorted=False,
        )
        self._lib.llama_sampler_apply(self._chain, ctypes.byref(array))
        return int(array.data[array.selected].id)


def _seed_of(seed: int, place: int) -> int:
    """32 bits for a token's generator: a seed and a place, mixed as SplitMix64 mixes its counter."""
    mixed = (seed * 0x2545F4914F6CDD1D + (place + 1) * 0x9E3779B97F4A7C15) & _64_BITS
    mixed = ((mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9) & _64_BITS
    mixed = ((mixed ^ mixed >> 27) * 0x94D049BB133111EB) & _64_BITS
    return (mixed ^ mixed >> 31) % 0xFFFFFFFF  # 2³² − 1 means "random" to libllama


def _described(logits: "Floats", token: int, n_top: int | None) -> Choice:
    if n_top is None:
        return Choice(token)
    import numpy as np

    wide = logits.astype(np.float64)
    log_p = wide - (wide.max() + np.log(np.exp(wide - wide.max()).sum()))
    likeliest = np.argsort(-log_p, kind="stable")[:n_top]
    return Choice(token, float(log_p[token]), tuple((int(i), float(log_p[i])) for i in likeliest))


def _chain(model: "Model", options: GenerateOptions) -> Any:
    """Build the samplers in llama.cpp's order."""
    lib = model.lib
    made = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())

    def add(link: Any) -> None:
        lib.llama_sampler_chain_add(made, link)

    if options.logit_bias:
        biases = (lib.llama_logit_bias * len(options.logit_bias))(*options.logit_bias)
        add(lib.llama_sampler_init_logit_bias(model.n_vocab, len(biases), biases))
    penalties = (options.repeat_penalty, options.frequency_penalty, options.presence_penalty)
    if penalties != (1.0, 0.0, 0.0):
        add(lib.llama_sampler_init_penalties(model.n_vocab, _PENALIZED_TOKENS, *penalties))
    if options.temperature <= 0:
        add(lib.llama_sampler_init_greedy())
        return made
    add(lib.llama_sampler_init_top_k(options.top_k))
    add(lib.llama_sampler_init_top_p(options.top_p, 1))
    add(lib.llama_sampler_init_min_p(options.min_p, 1))
    add(lib.llama_sampler_init_temp(options.temperature))
    add(lib.llama_sampler_init_dist(options.seed))
    return made
