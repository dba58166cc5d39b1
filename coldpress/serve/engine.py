"""The engine: continuous batching of many generations in one context, by one worker thread.

The worker owns model and context. Each step it admits what waits, decodes one token of every running
answer in one batch, then one chunk of one prompt in another: a prompt is cut at the same places
whoever else is there, because the kernels for many rows do not round as those for one do.

A sequence has cells for the longest request, so the cache never runs out under way; requests wait in
the order they came.
"""

import threading
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Literal

from coldpress import libllama
from coldpress.errors import ColdpressError, PromptTooLongError
from coldpress.serve import prefix
from coldpress.serve.constraint import GrammarError, Matcher
from coldpress.serve.generation import Done, Emit, Failed, Generation, TokenLogprob
from coldpress.serve.load import loader
from coldpress.serve.load.patience import Stop
from coldpress.serve.load.place import Place
from coldpress.serve.model import CHUNK_TOKENS, Context, DecodeError, Model
from coldpress.serve.options import DEFAULT_CONTEXT, EngineOptions
from coldpress.serve.sampling import Choice, GenerateOptions, Sampler
from coldpress.serve.threads import usable_cpus
from coldpress.serve.trace import Trace


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
    _prefix: prefix.State | None

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
        self._free_sequences = list(range(options.parallel))
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
    ) -> Generation:
        """Queue a generation; ``emit`` is called from the worker's thread.

        Args:
            matcher: the constraint that the answer follows, of this generation alone.

        Raises:
            PromptTooLongError: the prompt and one token of answer do not fit the context.
            QueueFullError: too many wait already.
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
        with self._changed:
            if not self.ready:
                raise ColdpressError("the engine has stopped", "start it again")
            if len(self._waiting) >= self.options.queue + len(self._free_sequences):
                raise QueueFullError("too many requests wait", "try again in a second")
            self._waiting.append(generation)
            self._changed.notify()
        return generation

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
        options = self.options
        state = prefix.begin(self.place, options.parallel)
        self.system_prompt = state.shipped.system_prompt if state else None
        self.model, self._context = loader.open_model(
            self.place,
            self._prepare,
            self._trace,
            tier=options.load,
            verify=options.verify,
            stop=self._stop,
        )
        self._prefix = self._checked(state)
        self._trace.mark("ready")

    def _prepare(self, model: Model) -> Context:
        options = self.options
        self.prompt_limit = min(options.context or DEFAULT_CONTEXT, model.context_tokens)
        return Context(
            model,
            cells=self.prompt_limit,
            sequences=options.parallel,
            threads=options.threads or usable_cpus(),
        )

    def _checked(self, state: prefix.State | None) -> prefix.State | None:
        """The shipped prefix if it may be used; else one line says why not."""
        if state is None:
            return None
        problem = state.shipped.mismatch(self.model) or state.wait()
        if problem:
            self._trace.emit("prefix_unused", reason=problem)
            return None
        self._trace.mark("prefix")
        return state

    def _end(self, message: str) -> None:
        """Tell everybody who is not served yet."""
        with self._changed:
            unserved = [*self._running, *self._waiting]
            self._waiting.clear()
        for generation in unserved:
            generation.emit(Failed(message))
        for generation in list(self._running):
            self._release(generation)

    def _sleep_until_work(self) -> bool:
        with self._changed:
            while not (self._closing or self._running or self._waiting):
                self._changed.wait()
            return not self._closing

    def _step(self) -> None:
        for generation in [one for one in self._running if one.cancelled]:
            self._release(generation)
        for generation in self._admit():
            self._reuse_prefix(generation)
        if answering := [one for one in self._running if one.answering]:
            self._decode(answering, 1)
        if reading := [one for one in self._running if not one.answering]:
            # Who has read least: a short prompt does not wait for the end of a long one.
            first = min(reading, key=lambda one: one.position)
            self._decode([first], first.next_chunk(CHUNK_TOKENS))

    def _admit(self) -> list[Generation]:
        """Let requests in while there are free sequences, the lowest first.

        llama.cpp decodes neighbouring sequences together and others one after the other.
        """
        admitted: list[Generation] = []
        with self._changed:
            while self._waiting and self._free_sequences:
                generation = self._waiting.popleft()
                if generation.cancelled:
                    continue
                self._trace.mark("request")
                generation.sequence = heappop(self._free_sequences)
                self._running.append(generation)
                admitted.append(generation)
        self._running.sort(key=lambda one: one.sequence)
        return admitted

    def _reuse_prefix(self, generation: Generation) -> None:
        """Start a prompt that begins with the shipped prefix from its state."""
        if self._prefix is None:
            return
        keep, end = self._prefix.shipped.start(generation.pending)
        if keep and self._context.restore(generation.sequence, self._prefix.buffer, keep):
            generation.take(keep)
            generation.chunk_end = end
        elif keep:
            self._trace.emit("prefix_unused", reason="llama.cpp refuses the state")
            self._prefix = None

    def _decode(self, generations: list[Generation], count: int) -> None:
        """Decode the next tokens of each, at most ``count``; where none is left, choose another."""
        rows = [self._put(one, count) for one in generations]
        try:
            self._context.decode()
        except DecodeError as error:
            for generation in generations:
                generation.emit(Failed(error.message))
                self._release(generation)
            return
        for generation, row in zip(generations, rows, strict=True):
            if not generation.pending:
                self._choose(generation, row)

    def _put(self, generation: Generation, count: int) -> int:
        position = generation.position
        taken = generation.take(count)
        wanted = not generation.pending
        return self._context.add(taken, position, generation.sequence, wanted=wanted)

    def _choose(self, generation: Generation, row: int) -> None:
        try:
            self._accept(generation, generation.sampler.choose(self._context, row))
        except GrammarError as error:
            generation.emit(Failed(f"the constraint cannot be followed: {error}"))
            self._release(generation)

    def _accept(self, generation: Generation, choice: Choice) -> None:
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
            return
        generation.completion_tokens += 1
        generation.pending = [token]
        if choice.logprob is not None:
            top = tuple((self.model.spelled(each), log_p) for each, log_p in choice.top)
            spelled = self.model.spelled(token)
            generation.logprobs.append(TokenLogprob(spelled, choice.logprob, top))
        written = token in generation.spelled
        piece = self.model.spelled(token) if written else self.model.piece(token)
        if text := generation.text.push(piece):
            generation.emit(generation.delta(text))
        if generation.text.stopped or generation.sampler.finished:
            self._finish(generation, "stop")
        elif generation.completion_tokens == generation.max_tokens:
            self._finish(generation, "length")

    def _finish(self, generation: Generation, reason: Literal["stop", "length"]) -> None:
        if tail := generation.text.finish():
            generation.emit(generation.delta(tail))
        generation.emit(Done(reason, generation.prompt_tokens, generation.completion_tokens))
        self._release(generation)

    def _release(self, generation: Generation) -> None:
        """Give a generation's sequence and cells back."""
        self._running.remove(generation)
        self._context.forget(generation.sequence)
        with self._changed:
            heappush(self._free_sequences, generation.sequence)
