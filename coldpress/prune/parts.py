"""Take parts of blocks out, each block its own: attention whole, feed-forward neurons ``multiple`` at a time.

The part goes whose absence costs least KL per weight, measured again after each. The checkpoint stays uniform, so
that transformers loads it as before: what is taken out is zeros, which training leaves alone, and the config says
so under ``coldpress``. Converted, the zeros are gone: llama.cpp's ``deci`` architecture has widths by block and
blocks without attention. (It has blocks without a feed-forward, too, but forgets what their attention computed; so
some neurons always stay.)

Source: Bercovich et al. 2024, arXiv:2411.19146 (blocks of different shapes); ``obs`` for which neurons.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from coldpress.calibrate import blocks
from coldpress.errors import UnsupportedModelError, UsageError
from coldpress.progress import task
from coldpress.prune import target, width
from coldpress.prune.kept import Kept
from coldpress.prune.measure import Before, Tokens
from coldpress.prune.obs import keep_groups
from coldpress.prune.stage import PruneOptions

FAMILIES = ("llama", "mistral")  # what ``deci`` computes: no biases, no other norms


@dataclass
class Block:
    """A block's present shape, and what it can become: by width, the matrices over the neurons that stay."""

    layer: Any
    neurons: int
    narrower: dict[int, dict[str, Tensor]]
    attention: bool = True

    def parts(self) -> Iterator[str]:
        """What can go next."""
        if self.attention:
            yield "attention"
        if any(each < self.neurons for each in self.narrower):
            yield "neurons"


def prune(model: Any, tokens: Tokens, options: PruneOptions) -> Kept:
    """Take parts out until the target is met, in place.

    Raises:
        UnsupportedModelError: ``deci`` does not compute this family.
        UsageError: even the least that may stay is more than the target.
    """
    config = model.config.get_text_config()
    _, layers = blocks.find(model)
    width.check(model, layers)
    biased = any(name.endswith(".bias") for name, _ in layers.named_parameters())
    if config.model_type not in FAMILIES or biased:
        raise UnsupportedModelError(
            f"llama.cpp has blocks of different shapes for {' and '.join(FAMILIES)} without biases only",
            "leave --heterogeneous out",
        )
    most = target.most(model, options)
    before = Before(model, tokens)
    step = options.multiple or width.multiple_of(config.intermediate_size)
    found = [_block(model, layer, tokens, step) for layer in layers]
    taken: list[dict[str, Any]] = []
    start = sum(map(weights, found))
    with task("choosing parts", max(1, start - most)) as advance:
        kl = 0.0
        while (now := sum(map(weights, found))) > most:
            index, part, kl = _cheapest(model, found, before, kl)
            _take(found[index], part)
            left = sum(map(weights, found))
            taken.append({"block": index, "part": part, "kl_nats": kl})
            advance(now - left)
    neurons, attention = [each.neurons for each in found], [each.attention for each in found]
    shapes = {"neurons": neurons, "attention": attention}
    config.coldpress = {"kept": shapes}
    what = f"attention taken out of {attention.count(False)} of {len(found)} blocks, neurons now "
    what += f"{min(neurons)} to {max(neurons)} of {config.intermediate_size}"
    return Kept(what, kl, {**shapes, "taken": taken}, n_zeros=start - sum(map(weights, found)))


def weights(block: Block) -> int:
    """Weights of a block that are not taken out."""
    layer = block.layer
    total: int = sum(each.numel() for each in layer.parameters())
    total -= 3 * layer.mlp.up_proj.in_features * (layer.mlp.up_proj.out_features - block.neurons)
    if not block.attention:
        total -= sum(each.numel() for each in layer.self_attn.parameters())
        total -= layer.input_layernorm.weight.numel()
    return total


def _block(model: Any, layer: Any, tokens: Tokens, step: int) -> Block:
    mlp = layer.mlp
    H = width.moments(model, mlp.down_proj, tokens)
    narrower = {}
    for neurons in range(step, mlp.down_proj.in_features, step):
        kept, W = keep_groups(mlp.down_proj.weight, H, 1, neurons)
        rows = {name: getattr(mlp, name).weight[kept].clone() for name in ("gate_proj", "up_proj")}
        narrower[neurons] = {**rows, "down_proj": W}
    return Block(layer, mlp.down_proj.in_features, narrower)


def _cheapest(model: Any, found: list[Block], before: Before, kl: float) -> tuple[int, str, float]:
    """The block and its part that cost least KL per weight, and the KL without it."""
    best: tuple[float, int, str, float] | None = None
    for index, block in enumerate(found):
        for part in block.parts():
            size = weights(block)
            with _without(block, part):
                now = before.kl(model)
                price = (now - kl) / (size - weights(block))
            if best is None or price < best[0]:
                best = (price, index, part, now)
    if best is None:
        raise UsageError("nothing more can be taken out of the blocks", "ask for less")
    return best[1:]


@contextmanager
def _without(block: Block, part: str) -> Iterator[None]:
    """Meanwhile the part is taken out."""
    saved = {each: each.detach().clone() for each in block.layer.parameters()}
    neurons, attention = block.neurons, block.attention
    _take(block, part)
    try:
        yield
    finally:
        for parameter, value in saved.items():
            parameter.copy_(value)
        block.neurons, block.attention = neurons, attention


def _take(block: Block, part: str) -> None:
    """Make the part zeros."""
    if part == "attention":
        for each in "qkvo":
            getattr(block.layer.self_attn, f"{each}_proj").weight.zero_()
        block.attention = False
        return
    block.neurons = max(each for each in block.narrower if each < block.neurons)
    for name, W in block.narrower[block.neurons].items():
        weight = getattr(block.layer.mlp, name).weight
        weight.zero_()
        weight[: W.shape[0], : W.shape[1]] = (
            W  # Those that stay come first; the zeros end the matrix.
        )
