"""Metrics that CloudWatch reads out of a function's log: one JSON line per answer.

Source: docs.aws.amazon.com/AmazonCloudWatch, "Specification: Embedded metric format".
"""

import json
import sys
import time

_NAMESPACE = "coldpress"
_UNITS = {
    "FirstTokenMs": "Milliseconds",
    "DurationMs": "Milliseconds",
    "PromptTokens": "Count",
    "CompletionTokens": "Count",
    "TokensPerSecond": "Count/Second",
}


def line(model: str, request_id: str, figures: dict[str, float]) -> str:
    """The line for one answer; ``figures`` by the names of ``_UNITS``."""
    metrics = [{"Name": name, "Unit": _UNITS[name]} for name in figures]
    told = {
        "_aws": {
            "Timestamp": int(time.time() * 1000),
            "CloudWatchMetrics": [
                {"Namespace": _NAMESPACE, "Dimensions": [["Model"]], "Metrics": metrics}
            ],
        },
        "Model": model,
        "RequestId": request_id,
        **figures,
    }
    return json.dumps(told)


class Stopwatch:
    """Times one answer; ``emit`` prints its line."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._first_s: float | None = None

    def text(self) -> None:
        """Note that there is text."""
        if self._first_s is None:
            self._first_s = time.monotonic()

    def emit(self, model: str, request_id: str, prompt: int, completion: int) -> None:
        """Print the line on stdout, which Lambda keeps."""
        now_s = time.monotonic()
        figures = {
            "DurationMs": round(1000 * (now_s - self._began_s), 1),
            "PromptTokens": prompt,
            "CompletionTokens": completion,
        }
        if self._first_s is not None:
            figures["FirstTokenMs"] = round(1000 * (self._first_s - self._began_s), 1)
            if completion > 1 and now_s > self._first_s:
                figures["TokensPerSecond"] = round((completion - 1) / (now_s - self._first_s), 2)
        sys.stdout.write(line(model, request_id, figures) + "\n")
        sys.stdout.flush()
