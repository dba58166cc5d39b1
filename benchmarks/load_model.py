"""Random models of Llama-3.2-1B's dimensions for loading benchmarks: a GGUF of Q4_K and its bf16 original.

Weights are random ggml blocks written directly: nothing is quantized, and every file is the same bytes each
time. The vocabulary has Llama 3's size and a merge per token, because reading it is part of a cold start.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from coldpress.cache import cache_dir

FOLDER = cache_dir() / "load-bench"
WIDTH, LAYERS, FEED_FORWARD, HEADS, KV_HEADS, HEAD = 2048, 16, 8192, 32, 8, 64
VOCABULARY, CONTEXT = 128256, 131072
BOS, EOS = 128000, 128001
_SCALE = 0.02
_Q4_K = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", 128)])
_Q6_K = np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")])


def checkpoint(layers: int = LAYERS) -> Path:
    """The coldpress checkpoint of the Q4_K file, about 0.95 GB with all layers, made on first use."""
    from coldpress import checkpoint as stage

    out = FOLDER / f"checkpoint{_suffix(layers)}"
    if not (out / "manifest.json").is_file():
        stage.checkpoint(plain(layers), out)
    return out


def plain(layers: int = LAYERS) -> Path:
    """The same tensors as a plain GGUF, as llama.cpp's tools would have written it."""
    path = FOLDER / f"plain{_suffix(layers)}.gguf"
    if not path.is_file():
        FOLDER.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        _write(partial, layers)
        partial.rename(path)
    return path


def _suffix(layers: int) -> str:
    return "" if layers == LAYERS else f"-{layers}"


def original() -> Path:
    """The bf16 safetensors folder of the same dimensions, 3.0 GB, for transformers and torch."""
    out = FOLDER / "original"
    if not out.is_dir():
        partial = FOLDER / "original.partial"
        shutil.rmtree(partial, ignore_errors=True)
        _save_original(partial)
        partial.rename(out)
    return out


def tensors() -> Path:
    """A state dict of as many bytes as the checkpoint's data, as ``model.pt`` and ``model.safetensors``."""
    out = FOLDER / "tensors"
    if not out.is_dir():
        partial = FOLDER / "tensors.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _save_tensors(partial, (checkpoint() / "model.gguf").stat().st_size)
        partial.rename(out)
    return out


def image() -> Path:
    """An ext4 image that holds the checkpoint, for the throttled block device."""
    from benchmarks.throttled_device import make_image

    path = FOLDER / "image.ext4"
    if not path.is_file():
        partial = path.with_suffix(".partial")
        make_image(checkpoint(), partial)
        partial.rename(path)
    return path


def shapes(layers: int = LAYERS) -> dict[str, tuple[int, ...]]:
    """Tensor → shape, output dimension first, by their GGUF names."""
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCABULARY, WIDTH)}
    for layer in range(layers):
        block = {
            "attn_norm": (WIDTH,),
            "attn_q": (HEADS * HEAD, WIDTH),
            "attn_k": (KV_HEADS * HEAD, WIDTH),
            "attn_v": (KV_HEADS * HEAD, WIDTH),
            "attn_output": (WIDTH, HEADS * HEAD),
            "ffn_norm": (WIDTH,),
            "ffn_gate": (FEED_FORWARD, WIDTH),
            "ffn_up": (FEED_FORWARD, WIDTH),
            "ffn_down": (WIDTH, FEED_FORWARD),
        }
        found |= {f"blk.{layer}.{name}.weight": shape for name, shape in block.items()}
    return {**found, "output_norm.weight": (WIDTH,), "output.weight": (VOCABULARY, WIDTH)}


def _is_q6(name: str, layers: int) -> bool:
    """As llama.cpp's Q4_K_M: the output, and half of the values and down projections."""
    if name == "output.weight":
        return True
    part = name.split(".")
    if len(part) != 4 or part[2] not in ("attn_v", "ffn_down"):
        return False
    layer = int(part[1])
    eighth = layers // 8
    return layer < eighth or layer >= 7 * eighth or (layer - eighth) % 3 == 2


def _write(path: Path, layers: int) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("load-bench")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_freq_base(500000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    _vocabulary(writer)
    random = np.random.default_rng(0)
    for name, shape in shapes(layers).items():
        if len(shape) == 1:
            writer.add_tensor(name, np.ones(shape, np.float32))
            continue
        is_q6 = _is_q6(name, layers)
        kind = gguf.GGMLQuantizationType.Q6_K if is_q6 else gguf.GGMLQuantizationType.Q4_K
        blocks = _q6_k(random, shape) if is_q6 else _q4_k(random, shape)
        writer.add_tensor(name, blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _q4_k(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Blocks whose weights lie around zero: d × scale × (0…15) − dmin × min."""
    rows, count = shape[0], shape[0] * shape[1] // 256
    blocks = np.frombuffer(bytearray(random.bytes(count * _Q4_K.itemsize)), _Q4_K)
    blocks["d"] = _SCALE / 32 / 8
    blocks["dmin"] = _SCALE / 32
    return blocks.view(np.uint8).reshape(rows, -1)


def _q6_k(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    rows, count = shape[0], shape[0] * shape[1] // 256
    blocks = np.frombuffer(bytearray(random.bytes(count * _Q6_K.itemsize)), _Q6_K)
    blocks["d"] = _SCALE / 64 / 16
    return blocks.view(np.uint8).reshape(rows, -1)


def _vocabulary(writer: Any) -> None:
    import gguf

    tokens, merges = byte_pairs()
    kinds = [gguf.TokenType.NORMAL] * BOS + [gguf.TokenType.CONTROL] * (VOCABULARY - BOS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types([int(kind) for kind in kinds])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_add_bos_token(True)


def byte_pairs() -> tuple[list[str], list[tuple[str, str]]]:
    """A byte-level vocabulary of Llama 3's size: bytes, random merges of what is there, special tokens."""
    tokens = list(_byte_letters())
    known, merges = set(tokens), []
    draws = _draws()
    while len(tokens) < BOS:
        left, right = (tokens[int(len(tokens) * draw)] for draw in next(draws))
        if len(left + right) > 12 or left + right in known:
            continue
        merges.append((left, right))
        tokens.append(left + right)
        known.add(left + right)
    return tokens + [f"<|special_{n}|>" for n in range(VOCABULARY - BOS)], merges


def _draws() -> Iterator[Any]:
    random = np.random.default_rng(1)
    while True:
        # Cubed: mostly old, short tokens.
        yield from random.random((65536, 2)) ** 3


def _byte_letters() -> Iterator[str]:
    """GPT-2's printable letter for each byte."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    yield from map(chr, shown)
    yield from (chr(256 + n) for n in range(256 - len(shown)))


def _save_tensors(out: Path, size_bytes: int) -> None:
    import torch
    from safetensors.torch import save_file

    # As many tensors as the model has, in its proportions.
    weights = {
        name: shape[0] * (shape[1] if len(shape) > 1 else 1) for name, shape in shapes().items()
    }
    scale = size_bytes / 2 / sum(weights.values())
    random = torch.Generator().manual_seed(0)
    made = {
        name: torch.randint(0, 2**14, (round(count * scale),), generator=random, dtype=torch.int16)
        for name, count in weights.items()
    }
    state = {name: tensor.view(torch.bfloat16) for name, tensor in made.items()}
    torch.save(state, out / "model.pt")
    save_file(state, out / "model.safetensors")


def _save_original(out: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=FEED_FORWARD,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD,
        max_position_embeddings=CONTEXT,
        rope_theta=500000.0,
        bos_token_id=BOS,
        eos_token_id=EOS,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(out)
    _save_tokenizer(out)


def _save_tokenizer(out: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokens, merges = byte_pairs()
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(out / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": tokens[BOS]}
    (out / "tokenizer_config.json").write_text(json.dumps(config))
