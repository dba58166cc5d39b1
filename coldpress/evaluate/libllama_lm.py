"""lm-eval's language model, answered by libllama in this process.

The model is the shipped GGUF on llama.cpp's own kernels. All requests become one sorted trie, so a
few-shot prefix, a question's four continuations and any other shared beginning are decoded once.
"""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from coldpress import progress
from coldpress.errors import PromptTooLongError, UsageError
from coldpress.evaluate.logprobs import logsumexp
from coldpress.evaluate.session import MAX_SEQUENCES, Batch, Context, Model
from coldpress.evaluate.trie import Branch, groups, shared_length

Tokens = tuple[int, ...]
Score = tuple[float, bool]
# (node in the batch, token to score there, request it belongs to)
_Ask = tuple[int, int, int]


class LibllamaLM(TemplateLM):  # type: ignore[misc]  # lm-eval ships no types
    """Scores and generates with a GGUF.

    Args:
        model: the opened GGUF.
        context: an empty context on it, with room for several sequences.
        n_ctx: the longest prompt; longer ones are refused, never cut.
        share: decode shared prefixes once; without it each request is decoded alone.
    """

    def __init__(self, model: Model, context: Context, n_ctx: int, *, share: bool = True) -> None:
        super().__init__()
        self._model = model
        self._context = context
        self._n_sequences = MAX_SEQUENCES - 1 if share else 1
        self._share = share
        self._resident: Tokens = ()  # what sequence 0 holds
        self.max_length = n_ctx
        self.max_gen_toks = 256
        # lm-eval asks for a question's context again with each of its choices.
        self._tokenize = lru_cache(maxsize=16)(self._tokens_of)
        self.shows_progress = False  # Whoever asks subject by subject shows his own.

    @property
    def eot_token_id(self) -> int:
        """The end-of-sequence token."""
        return self._model.eos

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context: BOS, or the end token if unused."""
        return self._model.bos if self._model.add_bos else self._model.eos

    @property
    def tokenizer_name(self) -> str:
        """What tells this vocabulary and template from others."""
        return self._model.vocabulary_digest()

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The GGUF's own template.

        Raises:
            UsageError: another one is asked for by name, or the GGUF has none.
        """
        if isinstance(chat_template, str):
            raise UsageError("a GGUF has one chat template", "ask for it without a name")
        if self._model.chat_template is None:
            raise UsageError(
                f"{self._model.path.name} has no chat template", "evaluate it without chat"
            )
        return self._model.chat_template

    def apply_chat_template(
        self, chat_history: Sequence[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as the prompt that the runtime would render."""
        from coldpress.serve.api.fields import ApiError
        from coldpress.serve.api.template import render

        bos, eos = (self._model.name(token) for token in (self._model.bos, self._model.eos))
        try:
            return render(
                self.chat_template(),
                tuple(chat_history),
                bos=bos,
                eos=eos,
                add_generation_prompt=add_generation_prompt,
            )
        except ApiError as error:
            raise UsageError(str(error), "evaluate it without chat") from error

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: object
    ) -> list[int]:
        """Tokenize as llama.cpp does, with BOS where the GGUF's metadata asks for it."""
        add = add_special_tokens is not False and not self._begins_with_bos(string)
        return list(self._tokenize(string, add))

    def _tokens_of(self, text: str, add_special: bool) -> Tokens:
        return tuple(self._model.tokenize(text, add_special=add_special, parse_special=True))

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = True) -> list[Score]:
        """Log-probability and greediness of each (context, continuation)."""
        scores: list[Score] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return scores

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        """Log-probability of whole texts, in windows of at most ``max_length`` tokens."""
        windows: list[tuple[tuple[str, str], list[int], list[int]]] = []
        owners: list[int] = []
        for owner, (text,) in enumerate(request.args for request in requests):
            for window in get_rolling_token_windows(
                self.tok_encode(text), self.prefix_token_id, self.max_length, context_len=1
            ):
                windows.append((("", ""), *make_disjoint_window(window)))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, (log_p, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += log_p
        return totals

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = True) -> list[str]:
        """Greedy text after each prompt, up to a stop string or an end-of-generation token."""
        texts: list[str] = []
        with self._progress("generating", len(requests)) as tick:
            for prompt, kwargs in (request.args for request in requests):
                texts.append(self._generate(self.tok_encode(prompt), dict(kwargs)))
                tick(1)
        return texts

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        **_kwargs: object,
    ) -> list[Score]:
        owners: dict[Tokens, list[int]] = defaultdict(list)
        for i, (_, context, continuation) in enumerate(requests):
            # lm-eval's tokenization may leave nothing to score or nothing to score it from.
            if not context or not continuation:
                raise UsageError("a context or continuation has no tokens", "mend the question")
            owners[(*context, *continuation[:-1])].append(i)
        paths = [self._path(tokens, requests, owners[tokens]) for tokens in sorted(owners)]
        log_p = np.zeros(len(requests))
        greedy = np.ones(len(requests), np.bool_)
        at = 0
        with self._progress("scoring", len(paths)) as tick:
            for group in groups(
                paths, n_cells=self._context.n_cells, n_sequences=self._n_sequences
            ):
                asks: list[_Ask] = []
                for path, nodes in zip(paths[at:], group.nodes, strict=False):
                    for i in owners[path.tokens]:
                        _, context, continuation = requests[i]
                        mine = nodes[len(context) - 1 - path.first_wanted :]
                        asks.extend((int(n), t, i) for n, t in zip(mine, continuation, strict=True))
                self._enter(group.trunk, len(group.nodes))
                self._score(group.batch, asks, log_p, greedy)
                self._leave(len(group.nodes))
                at += len(group.nodes)
                tick(len(group.nodes))
        return [(float(p), bool(g)) for p, g in zip(log_p, greedy, strict=True)]

    def _progress(self, words: str, total: int) -> AbstractContextManager[progress.Tick]:
        if self.shows_progress:
            return progress.task(words, total)
        return nullcontext(lambda _advance: None)

    def _path(
        self,
        tokens: Tokens,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        owners: Sequence[int],
    ) -> Branch:
        if len(tokens) > self.max_length:
            raise PromptTooLongError(
                f"a prompt has {len(tokens)} tokens, the context holds {self.max_length}",
                f"set n_ctx to {len(tokens)} or more, or use fewer examples",
            )
        return Branch(tokens, min(len(requests[i][1]) for i in owners) - 1)

    def _enter(self, trunk: Tokens, n_sequences: int) -> None:
        """Bring the trunk onto sequence 0, keeping what is already there, and branch from it."""
        kept = shared_length(self._resident, trunk) if self._share else 0
        self._context.forget(0, kept)
        if kept < len(trunk):
            rest = np.array(trunk[kept:], np.int32)
            none = np.zeros(len(rest), np.bool_)
            self._context.run(Batch.of_sequence(rest, start=kept, wanted=none))
        self._resident = trunk
        if trunk:
            for sequence in range(1, n_sequences + 1):
                self._context.share(len(trunk), sequence)

    def _leave(self, n_sequences: int) -> None:
        for sequence in range(1, n_sequences + 1):
            self._context.forget(sequence)

    def _score(
        self,
        batch: Batch,
        asks: list[_Ask],
        log_p: np.ndarray[Any, np.dtype[np.float64]],
        greedy: np.ndarray[Any, np.dtype[np.bool_]],
    ) -> None:
        """Add each ask's log-probability to its request; ``log_p`` and ``greedy`` are updated."""
        node, token, request = np.array(sorted(asks), np.int64).T
        for wanted, rows in self._context.decode(batch):
            here = slice(*np.searchsorted(node, (wanted[0], wanted[-1] + 1)))
            row = np.searchsorted(wanted, node[here])
            chosen = rows[row, token[here]].astype(np.float64) - logsumexp(rows)[row]
            np.add.at(log_p, request[here], chosen)
            np.logical_and.at(greedy, request[here], rows.argmax(axis=1)[row] == token[here])

    def _generate(self, prompt: list[int], kwargs: dict[str, Any]) -> str:
        if kwargs.get("do_sample") and kwargs.get("temperature", 0.0) > 0:
            raise UsageError("only greedy generation is scored here", "set do_sample to false")
        stops = kwargs.get("until") or []
        stops = [stops] if isinstance(stops, str) else stops
        budget = int(kwargs.get("max_gen_toks", self.max_gen_toks))
        if len(prompt) + budget > self.max_length:
            raise PromptTooLongError(
                f"{len(prompt)} prompt tokens and {budget} new ones exceed {self.max_length}",
                "raise n_ctx or lower max_gen_toks",
            )
        self._enter(tuple(prompt[:-1]), 0)
        self._resident = ()
        token, text, tokens = prompt[-1], "", list[int]()
        for position in range(len(prompt) - 1, len(prompt) - 1 + budget):
            step = Batch.of_sequence(np.array([token]), start=position, wanted=np.array([True]))
            token = next(int(rows[0].argmax()) for _, rows in self._context.decode(step))
            if self._model.is_end(token):
                break
            tokens.append(token)
            text = self._model.detokenize(tokens)
            if any(stop and stop in text for stop in stops):
                return min((text.split(stop)[0] for stop in stops if stop), key=len)
        return text

    def _begins_with_bos(self, text: str) -> bool:
        return self._model.add_bos and text.startswith(self._model.name(self._model.bos))
