"""OpenAI's embeddings: a request's texts → a body with their vectors."""

import asyncio
import base64
from array import array
from typing import Any

from coldpress.errors import ColdpressError, PromptTooLongError, UnsupportedModelError
from coldpress.serve.api import fields
from coldpress.serve.api.fields import ApiError
from coldpress.serve.api.protocol import parse_json
from coldpress.serve.api.reply import check_ready, to_json
from coldpress.serve.engine import Engine, QueueFullError

_MAX_TEXTS = 256


async def embeddings(engine: Engine, body: bytes) -> bytes:
    """The answer's body.

    Raises:
        ApiError: 400 a bad request, or a model without embeddings; 429; 503.
    """
    check_ready(engine)
    of = parse_json(body)
    form = of.get("encoding_format") or "float"
    if form not in ("float", "base64"):
        fields.refuse("encoding_format", "must be float or base64")
    if of.get("dimensions") is not None:
        fields.refuse("dimensions", "is not supported", "unsupported_parameter")
    texts = [_tokens(engine, each) for each in _inputs(of.get("input"))]
    try:
        under_way = engine.embed(texts)
        vectors = [await asyncio.wrap_future(each) for each in under_way]
    except (UnsupportedModelError, PromptTooLongError) as error:
        raise ApiError(400, error.message, "cannot_embed", param="input") from error
    except QueueFullError as error:
        raise ApiError(429, error.message, "queue_full", retry_after_s=1) from error
    except ColdpressError as error:
        raise ApiError(503, error.message, "stopping", retry_after_s=1) from error
    data = [
        {"object": "embedding", "index": index, "embedding": _encoded(vector, form)}
        for index, vector in enumerate(vectors)
    ]
    count = sum(map(len, texts))
    usage = {"prompt_tokens": count, "total_tokens": count}
    return to_json({"object": "list", "data": data, "model": engine.model.name, "usage": usage})


def _inputs(given: Any) -> list[Any]:
    """The texts of ``input``: one or several, as strings or as tokens."""
    if isinstance(given, str) or (given and isinstance(given, list) and isinstance(given[0], int)):
        return [given]
    if not isinstance(given, list) or not 1 <= len(given) <= _MAX_TEXTS:
        fields.refuse("input", f"must be a text, tokens, or a list of 1 to {_MAX_TEXTS} of them")
    return given


def _tokens(engine: Engine, text: Any) -> list[int]:
    model = engine.model
    if not isinstance(text, list):
        return model.tokenize(fields.text("input", text), add_special=True, parse_special=False)
    if not all(type(each) is int and 0 <= each < model.n_vocab for each in text):
        fields.refuse("input", "has something that is no token of this model")
    return text


def _encoded(vector: list[float], form: str) -> list[float] | str:
    if form == "float":
        return vector
    return base64.b64encode(array("f", vector).tobytes()).decode()
