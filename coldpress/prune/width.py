"""Take feed-forward neurons and attention head groups out of every block, the same number of each.

Which ones is decided block by block by ``obs``, on the second moments of what ``down_proj`` and ``o_proj``
multiply; those two layers are refitted to the inputs that stay. A head group is a key-value head with the query
heads that share it.
"""

from contextlib import suppress
from dataclasses import dataclass
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
from coldpress.prune.obs import keep_groups
from coldpress.prune.stage import PruneOptions

_LARGEST_MULTIPLE = 256
_LEAST = 3
_HEADS_FILL_WIDTH = ("qwen2",)  # llama.cpp's loader takes that for granted.
_LAYERS = (
    *(f"self_attn.{each}_proj" for each in "qkvo"),
    *(f"mlp.{each}_proj" for each in ("gate", "up", "down")),
)


@dataclass(frozen=True)
class Shape:
    """Widths of every block: feed-forward neurons and head groups."""

    neurons: int
    groups: int


def prune(model: Any, tokens: Tokens, options: PruneOptions) -> Kept:
    """Narrow every block to the largest shape that meets the target, in place.

    Raises:
        UnsupportedModelError: blocks without separate, dense projections.
        UsageError: no shape meets the target.
    """
    _, layers = blocks.find(model)
    check(model, layers)
    before = Before(model, tokens)
    shape = choose(model, target.most(model, options), options.multiple)
    config = model.config.get_text_config()
    per_block = _now(config).neurons - shape.neurons + _now(config).groups - shape.groups
    with task("narrowing blocks", len(layers) * max(1, per_block)) as advance:
        for index in range(len(layers)):
            _narrow(model, index, tokens, shape, advance)
    was = _now(config)
    config.intermediate_size = shape.neurons
    if shape.groups < was.groups:
        config.head_dim = _head_dim(config)  # No longer the quotient of width and heads.
        config.num_attention_heads = config.num_attention_heads // was.groups * shape.groups
        config.num_key_value_heads = shape.groups
    for layer in layers:
        layer.mlp.intermediate_size = shape.neurons
    what = f"feed-forward {was.neurons} → {shape.neurons}, key-value heads {was.groups} → {shape.groups}"
    return Kept(what, before.kl(model), {"neurons": shape.neurons, "groups": shape.groups})


def choose(model: Any, most: int, multiple: int | None) -> Shape:
    """The shape of the most neurons whose blocks have at most ``most`` weights.

    Heads stay, as in the models of Muralidharan et al. 2024, arXiv:2407.14679, unless a third as large a share
    of the neurons would.

    Raises:
        UsageError: no shape has so few.
    """
    _, layers = blocks.find(model)
    config = model.config.get_text_config()
    was = _now(config)
    queries = config.num_attention_heads // was.groups * _head_dim(config)
    step = multiple or multiple_of(was.neurons)
    aligned = multiple or multiple_of(was.groups * queries)
    for groups in range(was.groups, 0, -1):
        if groups < was.groups and not _may_be(config, groups, queries, aligned):
            continue
        for neurons in range(was.neurons - was.neurons % step, 0, -step):
            shape = Shape(neurons, groups)
            if neurons * was.groups * _LEAST < groups * was.neurons:
                break
            if shape != was and sum(_weights(each, was, shape) for each in layers) <= most:
                return shape
    raise UsageError(
        f"no width in steps of {step} neurons and {aligned} attention channels leaves as few as "
        f"{most} weights in the blocks",
        "ask for less, allow a smaller --multiple, or prune depth",
    )


def _may_be(config: Any, groups: int, queries: int, aligned: int) -> bool:
    """Whether transformers and llama.cpp take a model with so few head groups."""
    heads = groups * queries // _head_dim(config)
    fits = groups * queries % aligned == 0 and config.hidden_size % heads == 0
    return fits and config.model_type not in _HEADS_FILL_WIDTH


def _narrow(model: Any, index: int, tokens: Tokens, shape: Shape, advance: Any) -> None:
    """Narrow one block, on what it is given now that the blocks before it are narrow."""
    layer = blocks.find(model)[1][index]
    attention, mlp = layer.self_attn, layer.mlp
    config = model.config.get_text_config()
    groups, head_dim = _now(config).groups, _head_dim(config)
    queries = config.num_attention_heads // groups * head_dim
    if shape.groups < groups:
        H = moments(model, attention.o_proj, tokens)
        kept, W = keep_groups(attention.o_proj.weight, H, queries, shape.groups, advance)
        _set_inputs(attention.o_proj, W)
        _keep_rows(attention.q_proj, _spread(kept, queries))
        for each in (attention.k_proj, attention.v_proj):
            _keep_rows(each, _spread(kept, head_dim))
    if shape.neurons < len(mlp.up_proj.weight):
        H = moments(model, mlp.down_proj, tokens)
        kept, W = keep_groups(mlp.down_proj.weight, H, 1, shape.neurons, advance)
        _set_inputs(mlp.down_proj, W)
        for each in (mlp.gate_proj, mlp.up_proj):
            _keep_rows(each, kept)


def moments(model: Any, linear: Any, tokens: Tokens) -> Tensor:
    """E[x xᵀ] of a layer's input on the tokens, (in, in), in float64."""
    total = torch.zeros(linear.in_features, linear.in_features, dtype=torch.float64)

    def see(_linear: Any, args: Any) -> None:
        X = args[0].flatten(0, -2)
        total.add_((X.T @ X).double())
        raise _SeenError  # What follows it is not needed.

    hook = linear.register_forward_pre_hook(see)
    with torch.inference_mode():
        for row in tokens:
            with suppress(_SeenError):
                model(torch.from_numpy(row[None].astype(np.int64)), use_cache=False)
    hook.remove()
    return total / tokens.size


class _SeenError(Exception):
    """A layer's input has been seen."""


def _set_inputs(linear: Any, W: Tensor) -> None:
    linear.weight = torch.nn.Parameter(W.to(linear.weight.dtype), requires_grad=False)
    linear.in_features = W.shape[1]


def _keep_rows(linear: Any, rows: Tensor) -> None:
    linear.weight = torch.nn.Parameter(linear.weight[rows].clone(), requires_grad=False)
    if linear.bias is not None:
        linear.bias = torch.nn.Parameter(linear.bias[rows].clone(), requires_grad=False)
    linear.out_features = len(rows)


def _spread(groups: Tensor, size: int) -> Tensor:
    """The rows of groups of ``size`` neighbours."""
    return (groups[:, None] * size + torch.arange(size)).flatten()


def _weights(layer: Any, was: Shape, shape: Shape) -> int:
    """Weights of a block in another shape."""
    total: int = sum(each.numel() for each in layer.parameters())
    mlp: int = sum(each.numel() for each in layer.mlp.parameters())
    heads: int = sum(
        each.numel()
        for name in "qkvo"
        for each in getattr(layer.self_attn, f"{name}_proj").parameters()
    )
    # A bias of o_proj or down_proj would stay; no model known here has one.
    return (
        total
        - mlp * (was.neurons - shape.neurons) // was.neurons
        - heads * (was.groups - shape.groups) // was.groups
    )


def check(model: Any, layers: Any) -> None:
    """Refuse blocks without separate, dense projections."""
    for layer in layers:
        for path in _LAYERS:
            try:
                found = layer.get_submodule(path)
            except AttributeError:
                found = None
            if not isinstance(found, torch.nn.Linear):
                raise UnsupportedModelError(
                    f"the blocks of {model.config.model_type} have no dense {path}",
                    "prune its depth, or the experts of a mixture",
                )
    kept = (layers[0].self_attn.o_proj, layers[0].mlp.down_proj)
    if any(each.bias is not None for each in kept):
        raise UnsupportedModelError(
            f"{model.config.model_type} adds a bias after what would be narrowed",
            "prune its depth",
        )


def _now(config: Any) -> Shape:
    return Shape(config.intermediate_size, config.num_key_value_heads)


def _head_dim(config: Any) -> int:
    found = getattr(config, "head_dim", None)
    return int(found or config.hidden_size // config.num_attention_heads)


def multiple_of(width: int) -> int:
    """The largest power of two, up to 256, that divides a width."""
    largest: int = min(_LARGEST_MULTIPLE, width & -width)
    return largest
