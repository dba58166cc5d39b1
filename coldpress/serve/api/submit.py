"""A checked request → a generation in the engine: its prompt, its form, its tools."""

from collections.abc import Sequence
from dataclasses import replace

from coldpress.errors import ColdpressError, PromptTooLongError
from coldpress.serve import constraint
from coldpress.serve.api import template, tools
from coldpress.serve.api.fields import ApiError, refuse
from coldpress.serve.api.protocol import Request
from coldpress.serve.constraint import GrammarError, Matcher
from coldpress.serve.engine import Engine, QueueFullError
from coldpress.serve.generation import Emit, Generation, NotResumableError
from coldpress.serve.model import Model


def submit(
    engine: Engine, request: Request, emit: Emit, answered: Sequence[int] = ()
) -> Generation:
    """Queue the generation that a request asks for.

    Args:
        answered: the answer's tokens that exist already.

    Raises:
        ApiError: 400 a form that cannot be followed, no template, too long a prompt; 429 a full queue;
            503 the engine is stopping.
    """
    if request.options.speculate == "draft" and engine.options.draft is None:
        refuse("speculative", "needs a server with a draft model", "unsupported_parameter")
    try:
        options = replace(request.options, spelled=_spelled(engine.model, request))
        return engine.submit(
            _prompt(engine, request),
            options,
            emit,
            _matcher(engine.model, request),
            answered=answered,
        )
    except NotResumableError as error:
        raise ApiError(400, str(error), "not_resumable", param="resume") from error
    except PromptTooLongError as error:
        raise ApiError(
            400, error.message, "context_length_exceeded", param=_param(request)
        ) from error
    except QueueFullError as error:
        raise ApiError(429, error.message, "queue_full", retry_after_s=1) from error
    except ColdpressError as error:
        raise ApiError(503, error.message, "stopping", retry_after_s=1) from error


def _matcher(model: Model, request: Request) -> Matcher | None:
    """What the answer must follow, as asked for or so that tools are called in valid JSON."""
    form = request.form
    param = "tools" if form is None else form.param
    try:
        if form is not None:
            schema = form.schema
            grammar = (
                constraint.gbnf(form.grammar) if schema is None else constraint.json_schema(schema)
            )
        elif (lark := _calls_grammar(model, request)) is not None:
            grammar = constraint.lark(lark)
        else:
            return None
        return constraint.matcher(model, grammar)
    except GrammarError as error:
        raise ApiError(
            400, f"{param} cannot be followed: {error}", "invalid_value", param=param
        ) from error


def _notation(model: Model, request: Request) -> tools.Notation | None:
    return tools.notation(model.chat_template or "") if request.tools else None


def _calls_grammar(model: Model, request: Request) -> str | None:
    notation = _notation(model, request)
    return tools.grammar(model, notation, request.tools) if notation and request.tools else None


def call_reader(model: Model, request: Request) -> tools.CallReader | None:
    """What tells calls from text, where the request has tools.

    Raises:
        ApiError: 400: the model's template takes none.
    """
    notation = _notation(model, request)
    return tools.CallReader(notation, request.tools) if notation and request.tools else None


def _spelled(model: Model, request: Request) -> tuple[int, ...]:
    """The token that opens a call is a control token of some models."""
    notation = _notation(model, request)
    opening = tools.mark(model, notation) if notation else None
    return () if opening is None else (opening,)


def _prompt(engine: Engine, request: Request) -> list[int]:
    if request.kind == "chat":
        messages = template.with_system(request.messages, engine.system_prompt)
        tokens = template.prompt_tokens(engine.model, messages, request.tools)
    else:
        # What a client writes as plain text stays text: "</s>" in it is no end of text.
        tokens = engine.model.tokenize(request.prompt, add_special=True, parse_special=False)
    if not tokens:
        raise ApiError(400, "the prompt is empty", "invalid_value", param=_param(request))
    return tokens


def _param(request: Request) -> str:
    return "messages" if request.kind == "chat" else "prompt"
