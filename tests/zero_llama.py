"""A Llama of any size whose weights are all zero: for memory and buffers, which do not look at them."""

from pathlib import Path

import gguf
import numpy as np


def write(
    path: Path, *, hidden: int, heads: int, feed_forward: int, vocab: int, layers: int = 1
) -> Path:
    """Write it; half as many heads have keys and values."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(8192)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(feed_forward)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads // 2)
    writer.add_layer_norm_rms_eps(1e-5)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [f"t{i}" for i in range(vocab - len(tokens))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(rank) for rank in range(vocab)])
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * (vocab - 259)])
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd": (vocab, hidden),
        "output_norm": (hidden,),
    }
    for layer in range(layers):
        block = {
            "attn_norm": (hidden,),
            "ffn_norm": (hidden,),
            **{f"attn_{part}": (hidden, hidden) for part in ("q", "output")},
            **{f"attn_{part}": (hidden // 2, hidden) for part in ("k", "v")},
            **{f"ffn_{part}": (feed_forward, hidden) for part in ("gate", "up")},
            "ffn_down": (hidden, feed_forward),
        }
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
