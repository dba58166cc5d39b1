"""Take experts out of the mixtures of every block, the same number of each.

Those go whose answers, as the router weighs them, are smallest: the mean over a block's tokens of an expert's
weight times the length of its output, zero where it was not chosen. The router forgets their rows; how many are
chosen for a token stays.

Source: Lasby et al. 2025, arXiv:2510.13999 (router-weighted expert activation; there over the tokens routed to an
expert, which keeps one that is chosen rarely).
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from coldpress.calibrate import blocks
from coldpress.errors import UnsupportedModelError, UsageError
from coldpress.progress import task
from coldpress.prune import target
from coldpress.prune.kept import Kept
from coldpress.prune.measure import Before, Tokens
from coldpress.prune.stage import PruneOptions

_COUNTS = ("num_local_experts", "num_experts")  # what configs call it


def prune(model: Any, tokens: Tokens, options: PruneOptions) -> Kept:
    """Take as few experts out as the target asks, in place.

    Raises:
        UnsupportedModelError: no mixture of stacked experts.
        UsageError: fewer would stay than are chosen for a token.
    """
    mixtures = _mixtures(model)
    config = model.config.get_text_config()
    name = next(each for each in _COUNTS if each in type(config)().to_dict())
    was = int(getattr(config, name))
    count = _count(mixtures, was, target.sizes(model).in_blocks - target.most(model, options))
    if count > was - config.num_experts_per_tok:
        raise UsageError(
            f"{was - count} of {was} experts would stay; {config.num_experts_per_tok} are chosen for "
            "each token",
            "ask for less",
        )
    before = Before(model, tokens)
    importance = measure(model, mixtures, tokens)
    dropped = []
    for mixture, scores in zip(mixtures, importance, strict=True):
        order = scores.argsort()
        dropped.append(sorted(order[:count].tolist()))
        _keep(mixture, order[count:].sort().values)
    setattr(config, name, was - count)
    what = f"{count} of {was} experts of each block taken out"
    details = {"dropped": dropped, "importance": [each.tolist() for each in importance]}
    return Kept(what, before.kl(model), details)


def measure(model: Any, mixtures: list[Any], tokens: Tokens) -> list[Tensor]:
    """By mixture the experts' importance, (experts,), over the tokens."""
    totals = [torch.zeros(len(each.experts.down_proj), dtype=torch.float64) for each in mixtures]

    def watch(total: Tensor) -> Any:
        def see(experts: Any, args: Any) -> None:
            total.add_(contributions(experts, *args))

        return see

    hooks = [
        each.experts.register_forward_pre_hook(watch(total))
        for each, total in zip(mixtures, totals, strict=True)
    ]
    with torch.inference_mode(), task("weighing experts", len(tokens)) as advance:
        for row in tokens:
            model(torch.from_numpy(row[None].astype(np.int64)), use_cache=False)
            advance(1)
    for hook in hooks:
        hook.remove()
    return [total / tokens.size for total in totals]


def contributions(experts: Any, X: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """Summed over tokens, each expert's weight times the length of its output, (experts,).

    Args:
        experts: stacks ``gate_up_proj``, (experts, 2 · neurons, width), and ``down_proj``.
        X: hidden states, (tokens, width).
        chosen: experts of each token, (tokens, k).
        weights: the router's weights of them, (tokens, k).
    """
    found = torch.zeros(len(experts.down_proj), dtype=torch.float64)
    for index in range(len(found)):
        token, place = torch.where(chosen == index)
        gate, up = (X[token] @ experts.gate_up_proj[index].T).chunk(2, dim=-1)
        out = (experts.act_fn(gate) * up) @ experts.down_proj[index].T
        found[index] = (weights[token, place] * out.norm(dim=-1)).double().sum()
    return found


def _mixtures(model: Any) -> list[Any]:
    _, layers = blocks.find(model)
    found = [
        module
        for layer in layers
        for module in layer.modules()
        if hasattr(getattr(module, "experts", None), "gate_up_proj") and hasattr(module, "gate")
    ]
    plain = all(
        set(dict(each.experts.named_parameters())) == {"gate_up_proj", "down_proj"}
        and set(dict(each.gate.named_parameters())) == {"weight"}
        for each in found
    )
    if not found or not plain:
        raise UnsupportedModelError(
            f"{model.config.model_type} has no mixtures of experts that are known here",
            "prune its depth or its width",
        )
    return found


def _count(mixtures: list[Any], experts: int, fewer: int) -> int:
    """The fewest experts to take out of each mixture for so many weights fewer."""
    of_one: int = sum(
        each.numel() // experts
        for mixture in mixtures
        for each in (*mixture.experts.parameters(), mixture.gate.weight)
    )
    return -(-fewer // of_one)


def _keep(mixture: Any, kept: Tensor) -> None:
    for module, names in (
        (mixture.experts, ("gate_up_proj", "down_proj")),
        (mixture.gate, ("weight",)),
    ):
        for name in names:
            values = getattr(module, name)[kept].clone()
            setattr(module, name, torch.nn.Parameter(values, requires_grad=False))
        module.num_experts = len(kept)
