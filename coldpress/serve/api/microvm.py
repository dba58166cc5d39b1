"""The hooks of Lambda's MicroVMs: the platform posts to them while it builds, starts and resumes one.

``ready`` holds the image's snapshot back until the model is loaded; ``validate`` computes an answer, so that
the platform learns which pages that takes. Copies of a snapshot draw different seeds and ids, because
those come from the kernel when they are needed; only Python's own generator is a part of the copy.

Source: the AWS API "lambda-microvms" of 2025-09-09 for the hooks and their limits; their path as users of
the platform report it from their images' logs.
"""

import queue
import random

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from coldpress.serve.api.fields import ApiError
from coldpress.serve.api.reply import Reply, check_ready, to_json
from coldpress.serve.engine import Engine
from coldpress.serve.generation import Delta, Event, Failed

ENABLED = "COLDPRESS_MICROVM_HOOKS"
"""The environment variable that turns the hooks on; a MicroVM's image sets it."""
ROOT = "/aws/lambda-microvms/runtime/v1"
_READY_S = 3600
_PROMPT = to_json({"prompt": "The capital of France is", "max_tokens": 16, "temperature": 0})


def routes(engine: Engine) -> list[Route]:
    """The hooks' routes. They ask for no key: the platform has none, and they give nothing away."""

    async def ready(_request: Request) -> Response:
        await run_in_threadpool(engine.wait, _READY_S)
        check_ready(engine)
        return Response()

    async def validate(_request: Request) -> Response:
        await run_in_threadpool(_answer, engine)
        return Response()

    async def started(_request: Request) -> Response:
        check_ready(engine)
        random.seed()
        return Response()

    hooks = {"ready": ready, "validate": validate, "run": started, "resume": started}
    return [Route(f"{ROOT}/{name}", hook, methods=["POST"]) for name, hook in hooks.items()]


def _answer(engine: Engine) -> None:
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    Reply(engine, "completion", _PROMPT, events.put)
    while isinstance(event := events.get(), Delta):
        pass
    if isinstance(event, Failed):
        raise ApiError(503, "the model does not answer", "validate_failed")
