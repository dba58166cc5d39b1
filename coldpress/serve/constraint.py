"""Answers that follow a JSON schema or a grammar: llguidance says after every token which may be next.

It bounds its own work, but for tokenizing what a grammar forces, again at each token: a constant of 60 kB
takes llama.cpp a third of a second. So every answer has an allowance. llguidance is imported when the
first request asks for it.
"""

import json
import threading
import time
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from coldpress.serve.model import Model

_ALLOWANCE_S = 1.0
_PER_TOKEN_S = 0.02
"""CPU time by which the allowance grows back with each token."""
_ANY_OBJECT = {"type": "object"}


class GrammarError(ValueError):
    """A schema or grammar that cannot be followed: malformed, or too complex."""


class Matcher:
    """Where an answer is in its grammar. Not for two answers, nor for two threads at a time."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher
        self._left_s = _ALLOWANCE_S

    def allowed(self, n_vocab: int) -> "NDArray[np.integer[Any]]":
        """The tokens that may be next, at least one.

        Raises:
            GrammarError: following it takes too much time or memory.
        """
        import numpy as np

        began_s = time.thread_time()
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        self._left_s -= time.thread_time() - began_s
        if self._left_s < 0:
            raise GrammarError("it takes too much time")
        self._left_s = min(_ALLOWANCE_S, self._left_s + _PER_TOKEN_S)
        found = np.flatnonzero(np.unpackbits(mask, bitorder="little")[:n_vocab])
        if not len(found):
            raise GrammarError("no token of this model can go on")
        return found

    def accept(self, token: int) -> None:
        """Go on by a token.

        Raises:
            GrammarError: the grammar does not allow it, or has become too complex.
        """
        self._matcher.consume_token(token)
        self._check()

    @property
    def finished(self) -> bool:
        """Whether the text is complete and cannot go on."""
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(_first_line(self._matcher.get_error()))


def json_schema(schema: dict[str, Any] | None) -> str:
    """The grammar of a schema's instances; without one, of any JSON object.

    Raises:
        GrammarError: it is not a schema.
    """
    from llguidance import LLMatcher

    return _grammar(LLMatcher.grammar_from_json_schema, json.dumps(schema or _ANY_OBJECT))


def lark(text: str) -> str:
    """A grammar in Lark's notation.

    Raises:
        GrammarError: it is not one.
    """
    from llguidance import LLMatcher

    return _grammar(LLMatcher.grammar_from_lark, text)


def gbnf(text: str) -> str:
    """A grammar in llama.cpp's notation.

    Raises:
        GrammarError: it is not one.
    """
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        translated = any_to_lark(text)
    except Exception as error:  # it has no common type, and a plain Exception for a missing rule
        raise GrammarError(_first_line(str(error))) from error
    return lark(translated)


def _grammar(convert: Any, text: str) -> str:
    from llguidance import LLMatcher

    try:
        grammar = str(convert(text))
    except (ValueError, RecursionError) as error:
        raise GrammarError(_first_line(str(error))) from error
    if problem := LLMatcher.validate_grammar(grammar):
        raise GrammarError(_first_line(problem))
    return grammar


def matcher(model: "Model", grammar: str) -> Matcher:
    """Begin to follow a grammar.

    Raises:
        GrammarError: it is too large, or allows nothing.
    """
    from llguidance import LLMatcher

    made = Matcher(LLMatcher(_tokenizer(model), grammar, log_level=0))
    made._check()
    made.allowed(model.n_vocab)  # here it is the request's thread that works, not the engine's
    return made


_tokenizers: "WeakKeyDictionary[Model, Any]" = WeakKeyDictionary()
_lock = threading.Lock()


def _tokenizer(model: "Model") -> Any:
    """The model's vocabulary as llguidance wants it: made once, in up to a second."""
    from llguidance.llamacpp import lltokenizer_from_vocab

    with _lock:
        if model not in _tokenizers:
            _tokenizers[model] = lltokenizer_from_vocab(model.vocab, eos_token=model.end_tokens)
        return _tokenizers[model]


def _first_line(text: str) -> str:
    return text.strip().split("\n")[0][:300]
