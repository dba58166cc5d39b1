"""What Prometheus reads at /metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from coldpress.serve.engine import Engine
from coldpress.serve.generation import Done, Event

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
# Every other path is one label: clients must not be able to make new ones.
_PATHS = frozenset({
    "/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/chat/ws", "/tokenize", "/metrics", "/",
    "/healthz", "/readyz",
})  # fmt: skip


class Metrics:
    """Counts of one server."""

    def __init__(self, engine: Engine) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "coldpress_requests",
            "HTTP requests",
            ["path", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "coldpress_request_seconds",
            "from a request's first byte to its answer's last",
            ["path"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._first = Histogram(
            "coldpress_first_token_seconds",
            "from a request to its answer's first text",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._tokens = Counter(
            "coldpress_tokens", "tokens read and written", ["kind"], registry=self._registry
        )
        for name, about, value in (
            ("running", "answers under way", lambda: engine.n_running),
            ("waiting", "requests in the queue", lambda: engine.n_waiting),
            ("ready", "1 when it answers", lambda: engine.ready),
        ):
            Gauge(f"coldpress_{name}", about, registry=self._registry).set_function(value)

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count a request that has ended; status 0: a WebSocket, or no answer was begun."""
        label = path if path in _PATHS else "other"
        self._requests.labels(label, str(status)).inc()
        self._seconds.labels(label).observe(seconds)

    def first_token(self, seconds: float) -> None:
        """Note how long an answer's first text took."""
        self._first.observe(seconds)

    def done(self, event: Event) -> None:
        """Count the tokens of an answer that is complete."""
        if isinstance(event, Done):
            self._tokens.labels("prompt").inc(event.prompt_tokens)
            self._tokens.labels("completion").inc(event.made_tokens)

    def text(self) -> bytes:
        """The exposition."""
        return generate_latest(self._registry)
