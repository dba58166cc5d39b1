"""Speed and memory of a GGUF, measured in a process that does nothing else.

``measure`` starts this module as a program: the caller's libraries, lm-eval among them, would
otherwise be part of the peak memory.
"""

import json
import re
import sys
import time
from pathlib import Path
from statistics import median

from coldpress import tools
from coldpress.errors import ColdpressError
from coldpress.evaluate.result import Speed
from coldpress.evaluate.session import Batch, Context, Profile, open_context, open_model

_TIMEOUT_S = 3600
_FIRST_PROMPT_TOKENS = 32


def measure(
    gguf: Path, *, threads: int, profile: Profile, n_prompt: int, n_generate: int, repeats: int
) -> Speed:
    """Load, decode and generate in a fresh process; rates are the median of ``repeats``.

    Args:
        gguf: the file.
        threads: CPU threads.
        profile: see ``session.open_context``.
        n_prompt: tokens of the prompt whose rate is taken.
        n_generate: tokens generated one by one.
        repeats: how often each rate is taken.
    """
    numbers = (threads, n_prompt, n_generate, repeats)
    argv: list[str | Path] = [sys.executable, "-m", __name__, gguf, profile, *map(str, numbers)]
    return Speed(**json.loads(tools.run(argv, timeout_s=_TIMEOUT_S)))


def _measure_here(
    gguf: Path, profile: Profile, threads: int, n_prompt: int, n_generate: int, repeats: int
) -> Speed:
    start = time.perf_counter()
    cells = max(n_prompt, n_generate + 1)
    with (
        open_model(gguf) as model,
        open_context(model, n_cells=cells, threads=threads, profile=profile) as context,
    ):
        load_s = time.perf_counter() - start
        _decode_s(context, min(_FIRST_PROMPT_TOKENS, cells))
        ttft_s = time.perf_counter() - start
        prompts = [n_prompt / _decode_s(context, n_prompt) for _ in range(repeats)]
        generated = [n_generate / _generate_s(context, n_generate) for _ in range(repeats)]
    return Speed(median(prompts), median(generated), load_s, _peak_rss_mib(), ttft_s)


def _decode_s(context: Context, n: int) -> float:
    """Seconds to decode a prompt of ``n`` tokens up to its last logits."""
    import numpy as np

    context.clear()
    tokens = np.arange(n, dtype=np.int32) % context.n_vocab
    start = time.perf_counter()
    context.run(Batch.of_sequence(tokens, start=0, wanted=np.arange(n) == n - 1))
    return time.perf_counter() - start


def _generate_s(context: Context, n: int) -> float:
    """Seconds to decode ``n`` tokens one after the other, each the likeliest after the last."""
    import numpy as np

    _decode_s(context, 1)
    token = 0
    start = time.perf_counter()
    for position in range(1, n + 1):
        batch = Batch.of_sequence(np.array([token]), start=position, wanted=np.array([True]))
        token = next(int(rows[0].argmax()) for _, rows in context.decode(batch))
    return time.perf_counter() - start


def _peak_rss_mib() -> float:
    """This process's peak resident memory.

    Not ``getrusage``: its figure starts from that of the process this one was forked from.
    """
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if match is None:
        raise ColdpressError("the kernel does not tell the peak memory", "run on Linux")
    return int(match.group(1)) / 1024


def main(argv: list[str]) -> None:
    """Print the speed of the file in ``argv`` as one line of JSON."""
    gguf, profile, *numbers = argv
    speed = _measure_here(Path(gguf), "exact" if profile == "exact" else "fast", *map(int, numbers))
    print(json.dumps(vars(speed)))


if __name__ == "__main__":
    main(sys.argv[1:])
