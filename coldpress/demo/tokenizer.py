"""Train the SentencePiece tokenizer and write the files that transformers and llama.cpp read.

No dummy prefix and identity normalization: text is cut the same way at the start, after a chat
symbol and in the middle, so SentencePiece, transformers and llama.cpp agree token for token.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

VOCAB_SIZE = 4096
CHAT_SYMBOLS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


def train_tokenizer(lines: Iterable[str], out: Path) -> None:
    """Train a BPE model on ``lines`` and write every tokenizer file into ``out``."""
    import sentencepiece

    out.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        character_coverage=0.9999,
        user_defined_symbols=list(CHAT_SYMBOLS),
        num_threads=1,
        minloglevel=2,
    )
    (out / "tokenizer.model").write_bytes(model.getvalue())
    write_configs(out)


def write_configs(out: Path) -> None:
    """Write tokenizer.json and the small JSON files beside ``tokenizer.model``."""
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(out / "tokenizer.model"))
    fast = fast_tokenizer(pieces)
    _write_json(out / "tokenizer.json", fast)
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    _write_json(out / "special_tokens_map.json", special)
    _write_json(
        out / "tokenizer_config.json",
        {
            **special,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": True,
            "add_eos_token": False,
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 1024,
            # llama.cpp's converter learns from here that the chat symbols are special.
            "added_tokens_decoder": {
                str(token["id"]): {key: token[key] for key in token if key != "id"}
                for token in fast["added_tokens"]
            },
            "chat_template": CHAT_TEMPLATE,
        },
    )


def fast_tokenizer(pieces: Any) -> dict[str, Any]:
    """The same BPE as a ``tokenizer.json``: merges are all the splits of a piece, best first."""
    count = pieces.get_piece_size()
    vocab = {pieces.id_to_piece(i): i for i in range(count)}
    plain = {
        pieces.id_to_piece(i): i
        for i in range(count)
        if not (pieces.is_control(i) or pieces.is_unknown(i) or pieces.is_byte(i))
        and pieces.id_to_piece(i) not in CHAT_SYMBOLS
    }
    merges = [
        (rank, plain[left], plain[right], [left, right])
        for piece, rank in plain.items()
        for left, right in ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        if left in plain and right in plain
    ]
    special = [(name, True) for name in ("<unk>", "<s>", "</s>")]
    special += [(name, True) for name in CHAT_SYMBOLS]
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    other = {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(vocab[name], name, is_special) for name, is_special in special],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, text],
            "pair": [bos, text, other],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [vocab["<s>"]], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [pair for *_, pair in sorted(merges)],
        },
    }


def _added(token_id: int, content: str, special: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": token_id, "content": content, **flags, "special": special}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
