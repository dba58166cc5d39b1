"""Messages → prompt, by the chat template that the model carries in ``tokenizer.chat_template``."""

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from coldpress.serve.api.fields import ApiError
from coldpress.serve.api.messages import Message, Tools
from coldpress.serve.model import Model

if TYPE_CHECKING:
    from jinja2 import Template


Messages = tuple[Message, ...]


def with_system(messages: Messages, system_prompt: str | None) -> Messages:
    """The messages, after the shipped system prompt where they bring none of their own."""
    if system_prompt is None or any(message["role"] == "system" for message in messages):
        return messages
    return ({"role": "system", "content": system_prompt}, *messages)


def prompt_tokens(model: Model, messages: Messages, tools: Tools | None = None) -> list[int]:
    """Render a conversation up to where the assistant's answer begins, as tokens.

    Raises:
        ApiError: 400: the model has no template, or its template refuses the messages.
    """
    if model.chat_template is None:
        raise ApiError(
            400, "this model has no chat template: use /v1/completions", "no_chat_template"
        )
    text = render(model.chat_template, messages, tools, bos=model.bos, eos=model.eos)
    # Many templates write BOS themselves; the tokenizer must not add another.
    written = bool(model.bos) and text.startswith(model.bos)
    return model.tokenize(text, add_special=not written, parse_special=True)


def render(
    template: str,
    messages: Messages,
    tools: Tools | None = None,
    *,
    bos: str,
    eos: str,
    add_generation_prompt: bool = True,
) -> str:
    """Apply a template as transformers does.

    Raises:
        ApiError: 400: the template is broken or refuses the messages.
    """
    from jinja2 import TemplateError

    try:
        return _compiled(template).render(
            messages=messages,
            tools=list(tools.functions) if tools else None,
            add_generation_prompt=add_generation_prompt,
            bos_token=bos,
            eos_token=eos,
        )
    # A template is a program: it may also divide by zero, index what is not there or recurse.
    except (
        *(TemplateError, ArithmeticError, LookupError, RecursionError),
        *(TypeError, ValueError),
    ) as error:
        raise ApiError(
            400,
            f"the chat template refuses the messages: {error}",
            "chat_template",
            param="messages",
        ) from error


@lru_cache(maxsize=4)
def _compiled(template: str) -> "Template":
    """Compile in a sandbox: a template comes with the weights, from whoever made them."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(raise_exception=_raise, strftime_now=_now)
    return environment.from_string(template)


def _to_json(value: Any, indent: int | None = None) -> str:
    """JSON without jinja2's escapes for HTML, as transformers has it."""
    import json

    return json.dumps(value, ensure_ascii=False, indent=indent)


def _now(layout: str) -> str:
    import time

    return time.strftime(layout)


def _raise(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(message)
