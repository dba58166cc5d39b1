"""How the next token is chosen: libllama's own samplers, so that no logits pass through Python."""

from dataclasses import dataclass
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class GenerateOptions:
    """One request's choices; temperature 0 takes the most likely token and ignores the other rules.

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
    """0 to 2³² − 2: 2³² − 1 means "random" to libllama."""


def chain(lib: ModuleType, options: GenerateOptions) -> Any:
    """Build the sampler chain in llama.cpp's order; free it with ``lib.llama_sampler_free``."""
    made = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    if options.temperature <= 0:
        lib.llama_sampler_chain_add(made, lib.llama_sampler_init_greedy())
        return made
    for link in (
        lib.llama_sampler_init_top_k(options.top_k),
        lib.llama_sampler_init_top_p(options.top_p, 1),
        lib.llama_sampler_init_min_p(options.min_p, 1),
        lib.llama_sampler_init_temp(options.temperature),
        lib.llama_sampler_init_dist(options.seed),
    ):
        lib.llama_sampler_chain_add(made, link)
    return made
