"""Write a random Llama as a GGUF without a converter: quick to load, every byte is a token."""

from pathlib import Path

import gguf
import numpy as np

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' and loop.first %}"
    "{{ raise_exception('the user speaks first') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
)
_WORDS = ["▁", "▁the", "▁of", "er", "in", "at", "▁a", "on", "é", "日", "本"]
_WIDTH, _HEADS, _KV_HEADS, _LAYERS, _FEED_FORWARD = 64, 4, 2, 2, 128


def write(
    path: Path,
    *,
    eos: int | None = None,
    context: int = 8192,
    template: str | None = CHAT_TEMPLATE,
    pooling: gguf.PoolingType | None = None,
) -> Path:
    """Write the model; with ``eos`` None greedy decoding never ends by itself."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(context)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_FEED_FORWARD)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    if pooling is not None:
        writer.add_pooling_type(pooling)
    _vocabulary(writer, eos, template)
    for name, shape in _shapes().items():
        weights = np.random.default_rng(len(name)).normal(0, 0.2, shape).astype(np.float32)
        if name == "output.weight" and eos is None:
            weights[2] = 0  # the logit of </s> is then 0, and that of another token always higher
        writer.add_tensor(name, weights if len(shape) > 1 else np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tokens() -> list[str]:
    return ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *_WORDS]


def _vocabulary(writer: gguf.GGUFWriter, eos: int | None, template: str | None) -> None:
    tokens = _tokens()
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    kinds += [gguf.TokenType.BYTE] * 256 + [gguf.TokenType.NORMAL] * len(_WORDS)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(rank) for rank in range(len(tokens))])
    writer.add_token_types([int(kind) for kind in kinds])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2 if eos is None else eos)
    writer.add_add_bos_token(True)
    if template is not None:
        writer.add_chat_template(template)


def _shapes() -> dict[str, tuple[int, ...]]:
    """Tensor → shape, output dimension first."""
    kv = _WIDTH // _HEADS * _KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (len(_tokens()), _WIDTH),
        "output_norm.weight": (_WIDTH,),
        "output.weight": (len(_tokens()), _WIDTH),
    }
    for layer in range(_LAYERS):
        shapes |= {
            f"blk.{layer}.attn_norm.weight": (_WIDTH,),
            f"blk.{layer}.attn_q.weight": (_WIDTH, _WIDTH),
            f"blk.{layer}.attn_k.weight": (kv, _WIDTH),
            f"blk.{layer}.attn_v.weight": (kv, _WIDTH),
            f"blk.{layer}.attn_output.weight": (_WIDTH, _WIDTH),
            f"blk.{layer}.ffn_norm.weight": (_WIDTH,),
            f"blk.{layer}.ffn_gate.weight": (_FEED_FORWARD, _WIDTH),
            f"blk.{layer}.ffn_up.weight": (_FEED_FORWARD, _WIDTH),
            f"blk.{layer}.ffn_down.weight": (_WIDTH, _FEED_FORWARD),
        }
    return shapes
