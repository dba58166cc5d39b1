"""Which of llama.cpp's BPE pre-tokenizers a model needs, decided before anything long starts.

Upstream recognises a pre-tokenizer by hashing the token ids of a fixed text, so that any retrained
or extended vocabulary is rejected, and late. Here the hash is tried first, then the splitting rules
in ``tokenizer.json`` are matched with those of known models; a choice of the second kind is proven
after the conversion by comparing tokens.
"""

import ast
import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from coldpress.convert import reference
from coldpress.errors import NotAModelError, UnsupportedModelError

_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SUFFIXES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}"
_GPT2 = "ByteLevel"
_DIGITS = "Digits, one by one"

# Splitting rules in tokenizer.json, in order → llama.cpp's name. Source: the tokenizers of Llama 3,
# Qwen 2, Qwen 3.5, GPT-4o, Mistral Nemo, SmolLM and GPT-2, and llama.cpp's llama-vocab.cpp.
KNOWN_RULES = {
    (f"{_SUFFIXES}|{_WORDS}|\\p{{N}}{{1,3}}{_REST}",): "llama-bpe",
    (f"{_SUFFIXES}|{_WORDS}|\\p{{N}}{_REST}",): "qwen2",
    (
        f"{_SUFFIXES}|[^\\r\\n\\p{{L}}\\p{{N}}]?[\\p{{L}}\\p{{M}}]+|\\p{{N}}"
        + r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ): "qwen35",
    (
        f"{_CASED}*{_LOWER}+{_SUFFIXES}?|{_CASED}+{_LOWER}*{_SUFFIXES}?|\\p{{N}}{{1,3}}"
        + _REST.replace(r"[\r\n]*", r"[\r\n/]*", 1),
    ): "gpt-4o",
    (
        f"{_CASED}*{_LOWER}+|{_CASED}+{_LOWER}*|\\p{{N}}"
        + _REST.replace(r"[\r\n]*", r"[\r\n/]*", 1),
    ): "tekken",
    (_DIGITS, _GPT2): "smollm",
    (_GPT2,): "gpt-2",
}


@dataclass(frozen=True)
class PreTokenizer:
    """``name`` to hand to the converter, None where it decides itself; ``how`` it was found."""

    name: str | None
    how: str


@dataclass(frozen=True)
class Recognised:
    """What the converter's source says: its test text and hash → pre-tokenizer."""

    text: str
    names: dict[str, str]


def choose(model: Path, tree: Path, given: str | None) -> PreTokenizer:
    """Decide the pre-tokenizer of the model in ``model`` for the converter in ``tree``.

    Args:
        given: the name that the user gave, taken as it is (and proven later, like a matched one).

    Raises:
        NotAModelError: the folder has no tokenizer.
        UnsupportedModelError: a BPE tokenizer whose splitting rules match no known model.
    """
    if given is not None:
        return PreTokenizer(given, "given")
    if (model / "tokenizer.model").is_file():
        return PreTokenizer(None, "SentencePiece")
    path = model / "tokenizer.json"
    if not path.is_file():
        raise NotAModelError(
            f"{model} has no tokenizer.json or tokenizer.model", "add its tokenizer"
        )
    definition = json.loads(path.read_bytes())
    if definition.get("model", {}).get("byte_fallback"):
        return PreTokenizer(None, "SentencePiece in tokenizer.json")
    known = recognised(tree)
    if _hash(model, path, known.text) in known.names:
        return PreTokenizer(None, "recognised by the converter")
    rules = splitting_rules(definition)
    if (name := KNOWN_RULES.get(rules)) is not None:
        return PreTokenizer(name, "matched by its splitting rules")
    raise UnsupportedModelError(
        f"the BPE pre-tokenizer in {path} is not one that llama.cpp is known to have",
        f"name it with --pre-tokenizer, one of: {', '.join(sorted(set(known.names.values())))}",
    )


def recognised(tree: Path) -> Recognised:
    """Read the converter's test text and hashes from the source of its ``get_vocab_base_pre``."""
    module = ast.parse((tree / "conversion" / "base.py").read_text(encoding="utf-8"))
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef) and node.name == "get_vocab_base_pre":
            return _read_method(node)
    raise UnsupportedModelError(
        f"{tree} has no get_vocab_base_pre", "use the llama.cpp that the runtime was built from"
    )


def splitting_rules(definition: dict[str, Any]) -> tuple[str, ...]:
    """A tokenizer.json's pre-tokenizer as a tuple: regular expressions, and kinds without one."""
    return tuple(_flatten(definition.get("pre_tokenizer") or {}))


def _read_method(method: ast.FunctionDef) -> Recognised:
    """Collect ``chktxt = '…'`` and every ``if chkhsh == '…': res = '…'``."""
    text, names = "", {}
    for node in method.body:
        match node:
            case ast.Assign([ast.Name("chktxt")], ast.Constant(str(value))):
                text = value
            case ast.If(ast.Compare(ast.Name("chkhsh"), [ast.Eq()], [ast.Constant(str(digest))])):
                for inner in node.body:
                    match inner:
                        case ast.Assign([ast.Name("res")], ast.Constant(str(name))):
                            names[digest] = name
    return Recognised(text, names)


def _hash(model: Path, path: Path, text: str) -> str:
    """Upstream's hash of a tokenizer, by the quick ``tokenizers`` library when that loads it."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_truncation()  # Some files carry the settings of their training.
        tokenizer.no_padding()
        ids = tokenizer.encode(text).ids
    except Exception:  # Its errors have no narrower class; transformers may still know the file.
        ids = reference.load_tokenizer(model)(text)["input_ids"]
    return sha256(str(ids).encode()).hexdigest()


def _flatten(node: dict[str, Any]) -> list[str]:
    match node:
        case {"type": "Sequence", "pretokenizers": list(parts)}:
            return [rule for part in parts for rule in _flatten(part)]
        case {"type": "Split", "pattern": {"Regex": str(regex)}}:
            return [regex]
        case {"type": "ByteLevel", "use_regex": False}:
            return []  # Only maps bytes to characters, as every BPE in llama.cpp does.
        case {"type": "Digits", "individual_digits": True}:
            return [_DIGITS]
        case {"type": str(kind)}:
            return [kind]
        case _:
            return []
