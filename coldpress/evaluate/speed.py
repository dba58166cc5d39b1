"""Speed, start and memory of a GGUF, measured in a process that does nothing else.

``measure`` starts this module as a program: the caller's libraries, lm-eval among them, would
otherwise be part of the peak memory.
"""

import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from coldpress import libllama, tools
from coldpress.errors import ColdpressError
from coldpress.evaluate import page_cache
from coldpress.evaluate.result import Speed, SpeedPoint
from coldpress.evaluate.session import Batch, Context, Model, Profile, open_context, open_model

_TIMEOUT_S = 3600
_FIRST_PROMPT_TOKENS = 32
# More than this left in the page cache, and a start is not called cold.
_COLD_SHARE = 0.01


@dataclass(frozen=True)
class _Task:
    """What the child process is to measure; ``grid`` has (threads, context tokens)."""

    gguf: str
    profile: Profile
    threads: int
    n_prompt: int
    n_generate: int
    repeats: int
    grid: tuple[tuple[int, int], ...]


def measure(
    gguf: Path,
    *,
    threads: int,
    profile: Profile,
    n_prompt: int,
    n_generate: int,
    repeats: int,
    grid: Sequence[tuple[int, int]] = (),
) -> Speed:
    """Load, decode and generate in a fresh process; rates are the median of ``repeats``.

    Args:
        gguf: the file.
        threads: CPU threads.
        profile: see ``session.open_context``.
        n_prompt: tokens of the prompt whose rate is taken.
        n_generate: tokens generated one by one.
        repeats: how often each rate is taken.
        grid: more points, each (threads, context tokens), for rates alone.
    """
    from pydantic import TypeAdapter

    task = _Task(str(gguf), profile, threads, n_prompt, n_generate, repeats, tuple(grid))
    argv: list[str | Path] = [sys.executable, "-m", __name__, json.dumps(asdict(task))]
    return TypeAdapter(Speed).validate_json(tools.run(argv, timeout_s=_TIMEOUT_S))


@dataclass(frozen=True)
class _Started:
    model: Model
    context: Context
    load_s: float
    ttft_s: float


def _measure_here(task: _Task) -> Speed:
    libllama.load()  # not the file's doing, and only the first start would pay for it
    with _started(task) as warm:
        prompts = [task.n_prompt / _decode_s(warm.context, task.n_prompt) for _ in _again(task)]
        generated = []
        for _ in _again(task):
            _decode_s(warm.context, 1)
            generated.append(_generate_rate(warm.context, task.n_generate, after=1))
    peak_rss_mib = _peak_rss_mib()
    cached_share = page_cache.drop(Path(task.gguf))
    with _started(task) as cold:
        grid = tuple(_point(cold.model, task, *point) for point in task.grid)
    was_cold = cached_share <= _COLD_SHARE
    return Speed(
        prompt_tok_per_s=median(prompts),
        generate_tok_per_s=median(generated),
        load_s=warm.load_s,
        peak_rss_mib=peak_rss_mib,
        ttft_s=warm.ttft_s,
        cold_load_s=cold.load_s if was_cold else None,
        cold_ttft_s=cold.ttft_s if was_cold else None,
        cold_cached_share=cached_share,
        grid=grid,
    )


def _again(task: _Task) -> range:
    return range(task.repeats)


@contextmanager
def _started(task: _Task) -> Iterator[_Started]:
    """Load the file and decode a first short prompt, both timed."""
    start = time.perf_counter()
    cells = max(task.n_prompt, task.n_generate + 1)
    with (
        open_model(Path(task.gguf)) as model,
        open_context(model, n_cells=cells, threads=task.threads, profile=task.profile) as context,
    ):
        load_s = time.perf_counter() - start
        _decode_s(context, min(_FIRST_PROMPT_TOKENS, cells))
        yield _Started(model, context, load_s, time.perf_counter() - start)


def _point(model: Model, task: _Task, threads: int, context_tokens: int) -> SpeedPoint:
    cells = context_tokens + task.n_generate
    prompts, generated = [], []
    with open_context(model, n_cells=cells, threads=threads, profile=task.profile) as context:
        _decode_s(context, min(_FIRST_PROMPT_TOKENS, cells))
        for _ in _again(task):
            prompts.append(context_tokens / _decode_s(context, context_tokens))
            generated.append(_generate_rate(context, task.n_generate, after=context_tokens))
    return SpeedPoint(threads, context_tokens, median(prompts), median(generated))


def _decode_s(context: Context, n: int) -> float:
    """Seconds to decode a prompt of ``n`` tokens up to its last logits."""
    import numpy as np

    context.clear()
    tokens = np.arange(n, dtype=np.int32) % context.n_vocab
    start = time.perf_counter()
    context.run(Batch.of_sequence(tokens, start=0, wanted=np.arange(n) == n - 1))
    return time.perf_counter() - start


def _generate_rate(context: Context, n: int, *, after: int) -> float:
    """Tokens per second of ``n`` tokens, each the likeliest, following ``after`` decoded ones."""
    import numpy as np

    token = 0
    start = time.perf_counter()
    for position in range(after, after + n):
        batch = Batch.of_sequence(np.array([token]), start=position, wanted=np.array([True]))
        token = next(int(rows[0].argmax()) for _, rows in context.decode(batch))
    return n / (time.perf_counter() - start)


def _peak_rss_mib() -> float:
    """This process's peak resident memory.

    Not ``getrusage``: its figure starts from that of the process this one was forked from.
    """
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if match is None:
        raise ColdpressError("the kernel does not tell the peak memory", "run on Linux")
    return int(match.group(1)) / 1024


def main(argv: list[str]) -> None:
    """Print the speed that the JSON in ``argv`` asks for as one line of JSON."""
    print(json.dumps(asdict(_measure_here(_Task(**json.loads(argv[0]))))))


if __name__ == "__main__":
    main(sys.argv[1:])
