"""Give a trained Llama the uneven channel gains of large models, without changing its function.

Large language models have channels whose gains differ severalfold, and that is a main reason why
they lose knowledge at 2 bits: a quantization block shares one scale between strong and weak
columns. A model this small, trained briefly, has even channels and hundreds of times the room its
facts need; at 2 bits it would lose next to nothing, and the demo would show nothing.
So the gain of channel i is moved: a norm's weight is multiplied by s_i and the columns that read
it are divided by s_i (the same between value and output, and between up and down projections).
In exact arithmetic the model computes the same; only its rounding becomes as hard as in life.
Calibrated methods (imatrix, scaling, error compensation) can see these channels and win them back.
"""

from __future__ import annotations

from typing import Any

import torch


def spread_channels(model: Any, sigma: float, seed: int) -> None:
    """Move gains ``s = exp(sigma · N(0, 1))`` through every layer, in place, in float32.

    ``sigma`` 0 leaves the model as it is.
    """
    generator = torch.Generator().manual_seed(seed)

    def gains(count: int) -> torch.Tensor:
        return torch.exp(sigma * torch.randn(count, generator=generator))

    with torch.no_grad():
        for layer in model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            readers = (attention.q_proj, attention.k_proj, attention.v_proj)
            _through_norm(layer.input_layernorm, readers, gains)
            _through_norm(layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj), gains)
            _through_values(attention, model.config, gains)
            s = gains(mlp.up_proj.weight.shape[0])
            mlp.up_proj.weight.mul_(s[:, None])
            mlp.down_proj.weight.div_(s)


def _through_norm(norm: Any, readers: tuple[Any, ...], gains: Any) -> None:
    s = gains(norm.weight.shape[0])
    norm.weight.mul_(s)
    for reader in readers:
        reader.weight.div_(s)  # (out, in): one gain per column


def _through_values(attention: Any, config: Any, gains: Any) -> None:
    # Each key-value head serves a group of query heads, so its gains repeat in the columns of o.
    s = gains(attention.v_proj.weight.shape[0]).view(config.num_key_value_heads, -1)
    attention.v_proj.weight.mul_(s.flatten()[:, None])
    groups = config.num_attention_heads // config.num_key_value_heads
    attention.o_proj.weight.div_(s.repeat_interleave(groups, dim=0).flatten())
