"""Our images under two clouds' rules, emulated by podman: cold start, tok/s and cost per request.

``python -m benchmarks.clouds`` packages the demo model and random weights of Llama-3.2-1B's dimensions, both at
Q4_K, and runs each image as its platform would: not as root, on a read-only root, with the platform's memory limit
and share of a CPU.

    Lambda      /tmp is a tmpfs of 512 MB; a vCPU per 1,769 MB; a Runtime API that streams gives it the first
                event before it starts and fifty more, one at a time
    Cloud Run   $PORT over HTTP; at the end a SIGTERM in the middle of a stream, which must still be finished

Seconds are from the start of the runtime's process, so what a platform does before is not in them, and the file
is in the page cache. Prices are those of ``coldpress/platforms.yaml``. Where a size has more vCPU than this
machine, it gets what there is. tok/s are an answer's tokens over its whole request's seconds, its prompt's reading
included.
"""

import argparse
import io
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import serve_models, serve_report
from benchmarks.serve_client import Answer, ask, body, until_answered
from coldpress import cost
from coldpress.package import PackageOptions, package
from coldpress.platforms import Platform, Target, table
from coldpress.serve.aws.runtime_server import RuntimeServer, serving
from tests import containers
from tests.lambda_calls import Answer as Posted
from tests.lambda_calls import collect, send

_PROMPT, _ANSWER = 20, 64
_MIB_PER_VCPU = 1769
_WAIT_S = 300
_PUBLISHED = {
    "model": "Llama 3.2 1B",
    "memory_mib": 6144,
    "tok_s": [7.42, 7.39],
    "what": "published figures of the same dimensions on Lambda, as the project's issue 6 gives them",
}
Bodies = list[dict[str, Any]]


@dataclass(frozen=True)
class Size:
    """An instance of a platform."""

    target: Target
    memory_mib: int
    vcpu: float


SIZES: dict[serve_models.Name, tuple[Size, ...]] = {
    "demo": (Size("lambda", 1769, 1.0), Size("cloudrun", 512, 1.0)),
    "1b": (
        Size("lambda", 1769, 1.0),
        Size("lambda", 3538, 2.0),
        Size("lambda", 6144, 6144 / _MIB_PER_VCPU),
        Size("cloudrun", 2048, 2.0),
    ),
}


@dataclass(frozen=True)
class Ran:
    """What one container did: its answers in order, the first of them cold, and its own account."""

    answers: list[Answer]
    events: dict[str, dict[str, Any]]
    finished_after_sigterm: bool | None = None


def clouds(name: serve_models.Name, n_prompts: int, scratch: Path) -> list[dict[str, Any]]:
    """Every size of a model."""
    asked = _bodies(name, n_prompts + 1)
    rows = []
    with containers.store() as store:
        images: dict[Target, str] = {}
        for size in SIZES[name]:
            if size.target not in images:
                out = scratch / f"{name}-{size.target}"
                made = package(serve_models.folder(name), out, PackageOptions(target=size.target))
                images[size.target] = store.load(made.archive)
                made.archive.unlink()
            run = _on_lambda if size.target == "lambda" else _on_cloudrun
            rows.append({"model": name, **_row(size, run(store, images[size.target], size, asked))})
            print(rows[-1], file=sys.stderr)
    return rows


def _bodies(name: serve_models.Name, count: int) -> Bodies:
    bias = serve_models.end_bias(name)
    prompts = serve_models.prompts(name, _PROMPT, range(count))
    return [body(prompt, _ANSWER, bias) for prompt in prompts]


def _row(size: Size, ran: Ran) -> dict[str, Any]:
    warm = ran.answers[1:]
    if any(answer.tokens != _ANSWER for answer in ran.answers):
        raise SystemExit(f"{size}: not every answer has {_ANSWER} tokens")
    start = ran.events["cold_start"]
    whole_s = median(answer.end_s - answer.asked_s for answer in warm)
    # Over the whole request: a quota lets a burst through, so that pieces come faster than they are made.
    rate = _ANSWER / whole_s
    platform: Platform = "lambda-x86" if size.target == "lambda" else "cloudrun"
    price = table().platforms[platform]
    instance = cost.Instance(size.memory_mib, size.vcpu)
    per_s = cost.usd_per_s(price, instance)
    threads = min(os.cpu_count() or 1, -(-size.vcpu // 1))
    priced = cost.cost(platform, price, instance, cost.Rate(int(threads), rate))
    return {
        **asdict(size),
        "vcpu_here": min(size.vcpu, os.cpu_count() or 1),
        "cold_start_s": start["first_token_s"],
        "n_prompts": len(warm),
        "tok_s": round(rate, 2),
        "first_token_s": round(median(a.first_s - a.asked_s for a in warm), 4),
        "request_s": round(whole_s, 4),
        "usd_per_request": whole_s * per_s + price.usd_per_request,
        "usd_per_500_tokens": priced.usd_per_request,
        "usd_per_million_tokens": priced.usd_per_million_tokens,
        "cpu_variant": start["cpu_variant"],
        "finished_after_sigterm": ran.finished_after_sigterm,
    }


def _limits(size: Size) -> list[str]:
    return ["--memory", f"{size.memory_mib}m", "--cpus", f"{size.vcpu:.3f}"]


def _on_lambda(store: containers.Store, image: str, size: Size, asked: Bodies) -> Ran:
    # As process 1 of its own namespace it would not end by SIGTERM: Lambda kills, and so it has no handler.
    options = [*_limits(size), "--tmpfs", "/tmp:size=512m", "--pid", "host"]
    with serving() as api:
        first = send(api, _event(asked[0]), _WAIT_S)  # what starts an environment is waiting for it
        environment = {
            "AWS_LAMBDA_RUNTIME_API": api.address,
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(size.memory_mib),
        }
        for name, value in environment.items():
            options += ["--env", f"{name}={value}"]
        with _container(store, image, options) as (_, events):
            answers = [_read(time.time(), collect(first))]
            answers += [_invoke(api, each) for each in asked[1:]]
    return Ran(answers, events())


def _on_cloudrun(store: containers.Store, image: str, size: Size, asked: Bodies) -> Ran:
    port = containers.free_port()
    options = [*_limits(size), "--env", f"PORT={port}"]
    with _container(store, image, options) as (process, events):
        answers = [until_answered(port, asked[0], process)]
        answers += [ask(port, each) for each in asked[1:]]
        finished = _sigterm_in_a_stream(process, port, asked[0])
    return Ran(answers, events(), finished and process.returncode == 0)


@contextmanager
def _container(
    store: containers.Store, image: str, options: list[str]
) -> Iterator[tuple[Any, Callable[[], dict[str, dict[str, Any]]]]]:
    """A running container, and afterwards the JSON lines that the runtime wrote in it."""
    said = io.StringIO()

    def events() -> dict[str, dict[str, Any]]:
        lines = (line for line in said.getvalue().splitlines() if line.startswith('{"event"'))
        return {event["event"]: event for event in map(json.loads, lines)}

    with redirect_stdout(said), store.container(image, options=options) as process:
        yield process, events


def _sigterm_in_a_stream(process: Any, port: int, asked: dict[str, Any]) -> bool:
    """Whether a stream that has begun is finished when the platform wants to stop the instance."""
    connection = HTTPConnection("127.0.0.1", port, timeout=_WAIT_S)
    connection.request("POST", "/v1/completions", json.dumps(asked))
    response = connection.getresponse()
    response.readline()
    process.terminate()
    rest = response.read()
    connection.close()
    process.wait(_WAIT_S)
    return rest.endswith(b"data: [DONE]\n\n")


def _event(asked: dict[str, Any]) -> dict[str, Any]:
    """A function URL's event."""
    path = "/v1/completions"
    context = {
        "domainName": "abc.lambda-url.eu-central-1.on.aws",
        "http": {"method": "POST", "path": path},
    }
    return {"rawPath": path, "requestContext": context, "body": json.dumps(asked)}


def _invoke(api: RuntimeServer, asked: dict[str, Any]) -> Answer:
    began_s = time.time()
    return _read(began_s, collect(send(api, _event(asked), _WAIT_S)))


def _read(asked_s: float, posted: Posted) -> Answer:
    """A streamed answer: its chunks have the times when they came."""
    times = [
        at_s for at_s, data in posted.chunks if b'"text":"' in data and b'"text":""' not in data
    ]
    text = posted.body.decode()
    usage = re.search(r'"prompt_tokens":(\d+),"completion_tokens":(\d+)', text)
    if not times or usage is None or posted.failure:
        raise SystemExit(f"Lambda's answer is broken: {text[-300:]} {posted.failure}")
    end_s = posted.chunks[-1][0]
    return Answer(asked_s, times[0], end_s, text, "length", int(usage[2]), int(usage[1]))


def main() -> None:
    """Run every size and write the part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--model", choices=serve_models.NAMES, action="append")
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in asked.model or serve_models.NAMES:
        with tempfile.TemporaryDirectory(dir=serve_models.scratch()) as scratch:
            rows += clouds(name, asked.prompts, Path(scratch))
    part = {
        "rows": rows,
        "published": _PUBLISHED,
        "prices": str(table().date),
        "prompt_tokens": _PROMPT,
        "answer_tokens": _ANSWER,
    }
    serve_report.update("clouds", "python -m benchmarks.clouds", part, {})


if __name__ == "__main__":
    main()
