"""``reports/serve.json``: parts measured by several programs, each with its conditions; one headline."""

import json
import os
import resource
import time
from pathlib import Path
from typing import Any

from benchmarks.conditions import conditions

REPORT = Path(__file__).resolve().parents[1] / "reports/serve.json"
DEFINITIONS = {
    "decode_vs_llama_bench": "tok/s of one stream on the 1B dimensions, 64 tokens, our engine in process over"
    " llama-bench's -n 64; median of the pairs, against the better of llama-bench with and without repacking",
    "prefill_vs_llama_bench": "the same for reading 512 tokens, llama-bench's -p 512",
    "speculative_tok_s_ratio": "tok/s with prompt lookup over without, on the copying prompt",
    "total_8_streams_vs_llama_server": "total tok/s of 8 streams over HTTP on the 1B dimensions, 100 tokens in and"
    " 64 out each, over llama-server's with 8 slots; median of the rounds, against the better of both repackings",
    "total_8_streams_vs_llama_cpp_server": "the same on the demo model, over llama-cpp-python's server",
    "first_token_p95_minus_llama_server_s": "those 8 streams' 95th percentile of the time to the first text, ours"
    " minus the lower of llama-server's",
    "start_to_listening_s": "process start until it answers over HTTP, 1B dimensions, file in the page cache",
    "first_token_minus_llama_server_s": "process start until the first text, ours minus the lower of"
    " llama-server's",
    "lambda_import_s": "what Lambda's path imports, llama.cpp's libraries included, beyond a bare interpreter",
    "soak_minutes": "mixed clients at twice the capacity",
    "soak_mismatched_streams": "completed streams that differ from their solo run",
    "soak_rss_growth_pct": "VmRSS at the end against that after the warm-up",
}


class Quiet:
    """How many CPUs others kept busy since it was made: none, on a machine that is fit for measuring.

    What our own children did counts only once they have ended.
    """

    def __init__(self) -> None:
        self._began_s, self._busy_s, self._own_s = time.monotonic(), _busy_s(), _own_s()

    def others_cpus(self) -> float:
        """The mean until now."""
        others = (_busy_s() - self._busy_s) - (_own_s() - self._own_s)
        return round(max(0.0, others) / (time.monotonic() - self._began_s), 2)


def _busy_s() -> float:
    """CPU seconds of every process since the machine started, and what was stolen from it."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own_s() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def update(part: str, command: str, body: dict[str, Any], headline: dict[str, float]) -> None:
    """Put a part into the report and leave the others alone."""
    report: dict[str, Any] = json.loads(REPORT.read_text()) if REPORT.exists() else {}
    known = report.get("headline", {}) | {name: round(v, 4) for name, v in headline.items()}
    # As the definitions are ordered; a figure without one is a mistake of ours.
    report["headline"] = {name: known[name] for name in DEFINITIONS if name in known}
    if missing := headline.keys() - DEFINITIONS.keys():
        raise KeyError(f"no definition of {missing}")
    report["definitions"] = {name: DEFINITIONS[name] for name in report["headline"]}
    # Parts are renewed one by one, so each has its own conditions.
    report[part] = {"conditions": conditions(command), **body}
    partial = REPORT.with_suffix(".partial")
    partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    partial.rename(REPORT)
    print(json.dumps({part: headline}, indent=1))
