"""Tiny random models of several families, with tokenizers trained on the embedded texts."""

import json
from pathlib import Path
from typing import Any

from coldpress import demo
from coldpress.demo.tokenizer import CHAT_SYMBOLS, write_configs

VOCAB = 512
_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
QWEN2_RULE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

LLAMA3_RULE = QWEN2_RULE.replace(r"\p{N}|", r"\p{N}{1,3}|")


def own_text() -> str:
    """Some eighty kilobytes of text that stays as it is, with numbers."""
    texts = (demo.CALIBRATION_TEXT, demo.TRAIN_TEXT)
    numbers = " ".join("3" * (1 + index % 5) for index in range(500))
    return "\n".join([*(path.read_text(encoding="utf-8")[:40_000] for path in texts), numbers])


def sentencepiece(folder: Path) -> None:
    """Train a byte-fallback SentencePiece tokenizer of ``VOCAB`` pieces into a model folder."""
    import sentencepiece as spm

    with (folder / "tokenizer.model").open("wb") as model:
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(own_text().splitlines()),
            model_writer=model,
            vocab_size=VOCAB,
            model_type="bpe",
            byte_fallback=True,
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            normalization_rule_name="identity",
            user_defined_symbols=list(CHAT_SYMBOLS),
            minloglevel=2,
        )
    write_configs(folder)


def byte_bpe(folder: Path, rule: str) -> None:
    """Train a byte-level BPE tokenizer with a splitting rule into a model folder."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(rule), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([own_text()], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def save(folder: Path, family: str, scale: float = 3, **changes: Any) -> Path:
    """Save a random bf16 model of a transformers family, for example ``llama`` or ``gemma2``."""
    from transformers import AutoConfig

    return _save(folder, AutoConfig.for_model(family, **(_SIZES | changes)), scale)


def save_with_images(folder: Path, scale: float = 3, **changes: Any) -> Path:
    """Save a random bf16 Gemma 3 whose text model stands beside a part that sees images."""
    from transformers import Gemma3Config

    eyes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    eyes |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    tokens = {"boi_token_index": VOCAB - 3, "eoi_token_index": VOCAB - 2}
    tokens |= {"image_token_index": VOCAB - 1, "mm_tokens_per_image": 4}
    config = Gemma3Config(text_config=_SIZES | changes, vision_config=eyes, **tokens)
    return _save(folder, config, scale)


def _save(folder: Path, config: Any, scale: float) -> Path:
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)  # Livelier logits than initial ones, so that errors show.
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder
