"""Take whole blocks out of a model.

Source: greedy search by the divergence of the pruned model, Song et al. 2024, arXiv:2402.09025 (there by
perplexity); block influence, Men et al. 2024, arXiv:2403.03853, equation 1.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from coldpress.calibrate import blocks
from coldpress.errors import UnsupportedModelError, UsageError
from coldpress.progress import task
from coldpress.prune import target
from coldpress.prune.kept import Kept
from coldpress.prune.measure import Before, Tokens
from coldpress.prune.stage import PruneOptions

# Lists of a config with an entry per block; and those with the numbers of some blocks.
_PER_BLOCK, _BLOCK_NUMBERS = ("layer_types",), ("mlp_only_layers",)


def prune(model: Any, tokens: Tokens, options: PruneOptions) -> Kept:
    """Take the fewest blocks out that meet the target, in place.

    Raises:
        UsageError: not even one block may stay.
        UnsupportedModelError: blocks of different kinds would no longer alternate as llama.cpp has them.
    """
    _, layers = blocks.find(model)
    count = _count(layers, target.most(model, options))
    before = Before(model, tokens)
    if options.by == "kl":
        dropped, costs = search(model, before, count)
    else:
        order = np.argsort(influence(model, tokens), kind="stable")[:count]
        dropped, costs = order.tolist(), []
    kept = [index for index in range(len(layers)) if index not in dropped]
    with skipping(model, dropped):
        kl = before.kl(model)
    total = len(layers)
    keep(model, kept)
    what = f"blocks {', '.join(map(str, sorted(dropped)))} of {total} taken out"
    return Kept(what, kl, {"dropped": dropped, "kl_after_each_nats": costs})


def search(model: Any, before: Before, count: int) -> tuple[list[int], list[float]]:
    """Drop the block whose absence costs least KL, ``count`` times; the blocks in order, and the KL after each."""
    _, layers = blocks.find(model)
    dropped: list[int] = []
    costs: list[float] = []
    trials = sum(len(layers) - each for each in range(count))
    with task("choosing blocks", trials) as advance:
        for _ in range(count):
            found: dict[int, float] = {}
            for index in range(len(layers)):
                if index in dropped:
                    continue
                with skipping(model, [*dropped, index]):
                    found[index] = before.kl(model)
                advance(1)
            best = min(found, key=found.__getitem__)
            dropped.append(best)
            costs.append(found[best])
    return dropped, costs


def influence(model: Any, tokens: Tokens) -> list[float]:
    """By block 1 − the mean cosine between its input and its output."""
    _, layers = blocks.find(model)
    totals = [0.0] * len(layers)

    def watch(index: int) -> Any:
        def hook(_layer: Any, args: Any, output: torch.Tensor) -> None:
            cosine = torch.nn.functional.cosine_similarity(args[0], output, dim=-1)
            totals[index] += float((1 - cosine).sum())

        return hook

    hooks = [each.register_forward_hook(watch(i)) for i, each in enumerate(layers)]
    with torch.inference_mode():
        for row in tokens:
            model(torch.from_numpy(row[None].astype(np.int64)), use_cache=False)
    for each in hooks:
        each.remove()
    return [total / tokens.size for total in totals]


@contextmanager
def skipping(model: Any, dropped: Sequence[int]) -> Iterator[None]:
    """Meanwhile these blocks hand on what they are given."""
    _, layers = blocks.find(model)
    for index in dropped:
        layers[index].forward = lambda hidden, *_args, **_kwargs: hidden
    try:
        yield
    finally:
        for index in dropped:
            del layers[index].forward


def keep(model: Any, kept: Sequence[int]) -> None:
    """Keep these blocks of a model, in place, its config included.

    Raises:
        UnsupportedModelError: their kinds would not alternate as the model's do.
    """
    path, layers = blocks.find(model)
    config = model.config.get_text_config()
    for name in _PER_BLOCK:
        kinds = getattr(config, name, None)
        if kinds is None:
            continue
        if [kinds[index] for index in kept] != list(kinds[: len(kept)]):
            raise UnsupportedModelError(
                f"without these blocks the {name} of {config.model_type} no longer alternate as "
                "llama.cpp has them",
                "prune its width instead",
            )
        setattr(config, name, list(kinds[: len(kept)]))
    for name in _BLOCK_NUMBERS:
        if getattr(config, name, None):
            numbers = [kept.index(each) for each in getattr(config, name) if each in kept]
            setattr(config, name, numbers)
    config.num_hidden_layers = len(kept)
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, torch.nn.ModuleList(layers[i] for i in kept))
    for number, layer in enumerate(model.get_submodule(path)):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = number  # The KV cache's place.


def _count(layers: Any, most: int) -> int:
    """The fewest blocks to drop, whichever they are, for the others to have at most ``most`` weights."""
    weights = sorted(sum(each.numel() for each in layer.parameters()) for layer in layers)
    for count in range(1, len(layers)):
        if sum(weights[count:]) <= most:
            return count
    raise UsageError(
        f"a single block of {weights[0]} weights is more than the {most} that may stay",
        "ask for less",
    )
