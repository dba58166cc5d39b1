"""The engine: continuous batching of many generations in one context, by one worker thread.

The worker owns model and context. Each step it admits what waits, decodes one token of every running
answer in one batch, then one chunk of one prompt in another; while there are prompts to read, answers
get a twentieth of the time, but a token a second. Rows of answers are computed each by itself, so an
answer does not hang on who else is there; those of prompts by the kernels for many rows, which round in
another way, so a prompt is always cut at the same places.

While an answer runs alone, its next tokens are guessed and decoded with the last: those that the model
would have chosen itself are kept.

A sequence has cells for the longest request, so the cache never runs out under way; requests wait in
the order they came. Whole chunks of prompts stay in the cache for later prompts that begin with them.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Literal

from coldpress import libllama
from coldpress.errors import ColdpressError, PromptTooLongError
from coldpress.serve import embedding
from coldpress.serve.constraint import GrammarError, Matcher
from coldpress.serve.draft import DraftModel
from coldpress.serve.generation import Emit, Failed, Generation, TokenLogprob
from coldpress.serve.load.patience import Stop
from coldpress.serve.load.place import Place
from coldpress.serve.model import CHUNK_TOKENS, Context, DecodeError, Model
from coldpress.serve.opening import open_all
from coldpress.serve.options import EngineOptions
from coldpress.serve.sampling import Choice, GenerateOptions, Sampler
from coldpress.serve.sequences import Sequences
from coldpress.serve.speculation import PromptLookup, Speculate, Speculation
from coldpress.serve.trace import Trace

_CATCH_UP_ROWS = 32
"""Of an answer that was begun elsewhere; a step must not take long, somebody may come."""
_READING_PER_STEP = 20
"""So many times as long as answers' last step are prompts read before the next: who has no token yet
waits for every step of the others."""
_LONGEST_READING_S = 1.0


class QueueFullError(ColdpressError):
    """So many requests wait that another one would wait too long."""


class Engine:
    """Start it, wait for it, submit to it, close it.

    ``model``, ``prompt_limit`` and ``system_prompt`` exist once ``wait`` has returned true.
    """

    model: Model
    prompt_limit: int
    """Tokens that a prompt and its answer may have together."""
    system_prompt: str | None
    """What a chat without a system message gets, if something was shipped."""
    _context: Context
    _sequences: Sequences
    _draft: DraftModel | None
    _threads: int

    def __init__(self, place: Place, options: EngineOptions, trace: Trace) -> None:
        self.place = place
        self.options = options
        self.failure: ColdpressError | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self._trace = trace
        self._settled = threading.Event()
        self._changed = threading.Condition()
        self._waiting: deque[Generation] = deque()
        self._running: list[Generation] = []
        self._texts: deque[embedding.Text] = deque()
        self._embedder: embedding.Embedder | None = None
        self._alike: bool | None = None
        self._answers_due_s = 0.0
        self._closing = False
        self._stop = Stop()
        self._worker = threading.Thread(target=self._work, name="engine")

    def start(self) -> None:
        """Load the model in the background."""
        self._worker.start()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the model is loaded or cannot be; true when it answers."""
        self._settled.wait(timeout_s)
        return self.ready

    @property
    def settled(self) -> bool:
        """Whether the model is loaded or cannot be."""
        return self._settled.is_set()

    @property
    def ready(self) -> bool:
        """Whether it answers now."""
        return self._settled.is_set() and self.failure is None and not self._closing

    @property
    def n_running(self) -> int:
        """Answers under way."""
        return len(self._running)

    @property
    def n_waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    def submit(
        self,
        prompt: list[int],
        options: GenerateOptions,
        emit: Emit,
        matcher: Matcher | None = None,
        answered: Sequence[int] = (),
    ) -> Generation:
        """Queue a generation; ``emit`` is called from the worker's thread.

        Args:
            matcher: the constraint that the answer follows, of this generation alone.
            answered: tokens of the answer that exist already; their text is not emitted again.

        Raises:
            PromptTooLongError: the prompt and one token of answer do not fit the context.
            QueueFullError: too many wait already.
            NotResumableError: ``answered`` cannot be the beginning of this answer.
            ColdpressError: the engine has stopped.
        """
        room = self.prompt_limit - len(prompt)
        if room < 1:
            raise PromptTooLongError(
                f"the prompt has {len(prompt)} tokens, the context holds {self.prompt_limit}",
                "shorten the prompt or raise --context",
            )
        sampler = Sampler(self.model, options, matcher)
        most = min(room, options.max_tokens)
        generation = Generation(prompt, most, options, sampler, emit)
        if self.model.keeps_whole_context:
            generation.speculation = self._speculation(options.speculate)
        generation.go_on_from(self.model, answered)
        with self._changed:
            if not self.ready:
                raise ColdpressError("the engine has stopped", "start it again")
            free = self.options.parallel - len(self._running)
            if len(self._waiting) >= self.options.queue + free:
                raise QueueFullError("too many requests wait", "try again in a second")
            self._waiting.append(generation)
            self._changed.notify()
        return generation

    def embed(self, texts: list[list[int]]) -> "list[Future[list[float]]]":
        """Queue texts, of which each future will be the embedding.

        Raises:
            UnsupportedModelError: the model makes none.
            QueueFullError: too many wait already.
            ColdpressError: the engine has stopped.
        """
        embedding.check(self.model)
        queued = [embedding.Text(each) for each in texts]
        with self._changed:
            if not self.ready:
                raise ColdpressError("the engine has stopped", "start it again")
            if len(self._texts) > self.options.queue:
                raise QueueFullError("too many texts wait", "try again in a second")
            self._texts += queued
            self._changed.notify()
        return [each.done for each in queued]

    def close(self) -> None:
        """Stop after the present step, fail what is unfinished, free the context."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._stop.set()
        self._worker.join()

    def _work(self) -> None:
        try:
            self._load()
            self._settled.set()
            while self._sleep_until_work():
                self._step()
            self._end("the server is stopping")
            self._context.close()
            for other in (self._draft, self._embedder):
                if other is not None:
                    other.close()
        except Exception as error:
            if not isinstance(error, ColdpressError):
                error = ColdpressError(f"the engine stopped: {error!r}", "report this")
            if not self._closing:  # else it only fails because it was told to stop
                self.failure = error
            self._settled.set()
            try:
                self._end(error.message)
            finally:
                self.on_failure()

    def _load(self) -> None:
        opened = open_all(self.place, self.options, self._trace, self._stop)
        self.model, self._context = opened.model, opened.context
        self.prompt_limit, self.system_prompt = opened.prompt_limit, opened.system_prompt
        self._sequences, self._draft = opened.sequences, opened.draft
        self._threads = opened.threads
        self._trace.mark("ready")

    def _speculation(self, asked: Speculate | None) -> Speculation | None:
        match asked or self.options.speculate:
            case "lookup":
                return Speculation(PromptLookup())
            case "draft" if self._draft is not None:
                return Speculation(self._draft)
            case _:
                return None

    def _end(self, message: str) -> None:
        """Tell everybody who is not served yet."""
        with self._changed:
            unserved = [*self._running, *self._waiting]
            self._waiting.clear()
            texts = list(self._texts)
            self._texts.clear()
        for text in texts:
            text.done.set_exception(ColdpressError(message, "ask again"))
        for generation in unserved:
            generation.emit(Failed(message))
        for generation in list(self._running):
            self._release(generation)

    def _sleep_until_work(self) -> bool:
        with self._changed:
            while not (self._closing or self._running or self._waiting or self._texts):
                self._changed.wait()
            return not self._closing

    def _step(self) -> None:
        for generation in [one for one in self._running if one.cancelled]:
            self._release(generation)
        self._admit()
        answering = [one for one in self._running if not one.reading]
        if answering and (
            len(answering) == len(self._running) or time.monotonic() >= self._answers_due_s
        ):
            self._answer(answering)
        if reading := [one for one in self._running if one.reading]:
            # Who has read least: a short prompt does not wait for the end of a long one.
            first = min(reading, key=lambda one: one.position)
            self._decode([first], first.next_chunk(CHUNK_TOKENS))
        if self._texts:
            self._embed(self._texts.popleft())

    def _answer(self, answering: list[Generation]) -> None:
        """One token for each; while there are prompts to read, the next is due some time later."""
        began_s = time.monotonic()
        if len(answering) == 1:
            self._decode_alone(answering[0])
        else:
            self._decode(answering, 1)
        ended_s = time.monotonic()
        self._answers_due_s = ended_s + min(
            (ended_s - began_s) * _READING_PER_STEP, _LONGEST_READING_S
        )

    def _embed(self, text: embedding.Text) -> None:
        try:
            if self._embedder is None:
                limit, threads = self.prompt_limit, self._threads
                self._embedder = embedding.Embedder(self.model, cells=limit, threads=threads)
            text.done.set_result(self._embedder.embed(text.tokens))
        except ColdpressError as error:
            text.done.set_exception(error)

    def _admit(self) -> None:
        """Let requests in while there are free sequences."""
        admitted: list[Generation] = []
        with self._changed:
            while self._waiting and len(admitted) < self._sequences.n_free:
                generation = self._waiting.popleft()
                if not generation.cancelled:
                    self._trace.mark("request")
                    admitted.append(generation)
            self._running += admitted
        for generation in admitted:
            if not self._sequences.take(generation):
                self._trace.emit("prefix_unused", reason="llama.cpp refuses the state")
        self._running.sort(key=lambda one: one.sequence)

    def _decode_alone(self, generation: Generation) -> None:
        """Decode what is known of an answer, or its next token and guesses at those after it."""
        if len(generation.tokens) - generation.position > 1:
            self._decode([generation], _CATCH_UP_ROWS if self._rows_are_alike(generation) else 1)
        elif generation.speculation is None or not self._rows_are_alike(generation):
            self._decode([generation], 1)
        else:
            with generation.speculation.step() as step:
                step.guess(generation.tokens, generation.left - 1)
                step.n_right = self._decode([generation], 1, step.guesses)

    def _rows_are_alike(self, generation: Generation) -> bool:
        """Whether several rows may be computed for one answer; tried when it first matters."""
        if self._alike is None and generation.left > 1:
            token, position = generation.tokens[generation.position], generation.position
            try:
                self._alike = self._context.rows_are_alike(token, position, generation.sequence)
            except DecodeError:
                self._alike = False
            if not self._alike:
                self._trace.emit("no_speculation", reason="rows of these weights are not alike")
        return bool(self._alike)

    def _decode(
        self, generations: list[Generation], count: int, guesses: Sequence[int] = ()
    ) -> int:
        """Decode the next tokens of each, at most ``count``; where none is left, choose others.

        Returns how many of the guesses, which are of a single generation, were right.
        """
        # All of them answer, or the only one reads. A prompt's last token may be read with answers.
        fast = generations[0].reading and generations[0].next_chunk(count) > 1
        rows = [self._put(one, count, guesses) for one in generations]
        try:
            self._context.decode(by_row=not fast)
        except DecodeError as error:
            for generation in generations:
                generation.emit(Failed(error.message))
                self._release(generation, sound=False)
            return 0
        n_right = 0
        for generation, row in zip(generations, rows, strict=True):
            if generation.position <= generation.prompt_tokens:
                self._sequences.note(generation)
            if generation.position == len(generation.tokens):
                n_right = self._choose(generation, row - len(guesses), guesses)
        return n_right

    def _put(self, generation: Generation, count: int, guesses: Sequence[int]) -> int:
        position = generation.position
        known = generation.tokens[position : position + count]
        generation.position += len(known)
        wanted = 1 + len(guesses) if generation.position == len(generation.tokens) else 0
        return self._context.add([*known, *guesses], position, generation.sequence, wanted=wanted)

    def _choose(self, generation: Generation, row: int, guesses: Sequence[int]) -> int:
        """Choose the token after a row, and after each guess while it is what was chosen."""
        for n_right, guess in enumerate([*guesses, None]):
            try:
                choice = generation.sampler.choose(self._context, row + n_right)
            except GrammarError as error:
                generation.emit(Failed(f"the constraint cannot be followed: {error}"))
                self._release(generation)
                return n_right
            if not self._accept(generation, choice):
                return n_right
            if choice.token != guess:
                break
            generation.position += 1
        if guesses:
            self._context.forget(generation.sequence, generation.position)
        return n_right

    def _accept(self, generation: Generation, choice: Choice) -> bool:
        """Add a token to an answer; false: it was its last."""
        token = choice.token
        if self._trace.mark("first_token"):
            self._trace.between("first_token", "request", "first_token")
            self._trace.emit(
                "cold_start",
                weights_bytes=self.model.size_bytes,
                cpu_variant=libllama.cpu_variant(),
                timeline=self._trace.timeline,
            )
        if self.model.is_end(token):
            self._finish(generation, "stop")
            return False
        if choice.logprob is not None:
            top = tuple((self.model.spelled(each), log_p) for each, log_p in choice.top)
            spelled = self.model.spelled(token)
            generation.logprobs.append(TokenLogprob(spelled, choice.logprob, top))
        if text := generation.push(self.model, token):
            generation.emit(generation.delta(text))
        if generation.text.stopped or generation.sampler.finished:
            self._finish(generation, "stop")
        elif not generation.left:
            self._finish(generation, "length")
        else:
            return True
        return False

    def _finish(self, generation: Generation, reason: Literal["stop", "length"]) -> None:
        if tail := generation.text.finish():
            generation.emit(generation.delta(tail))
        generation.emit(generation.done(reason))
        self._release(generation)

    def _release(self, generation: Generation, *, sound: bool = True) -> None:
        with self._changed:
            self._running.remove(generation)
        self._sequences.give_back(generation, sound=sound)
