"""A chat's messages and the tools that its model may call, as templates take them."""

import json
import re
from dataclasses import dataclass
from typing import Any

from coldpress.serve.api import fields, sampling_fields

Message = dict[str, Any]
"""``role``, ``content`` and, of an assistant, ``tool_calls`` with their arguments as an object."""

_MAX_MESSAGES = 2048
_MAX_TOOLS = 128
_NAME = re.compile(r"[\w-]{1,64}", re.ASCII)
_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}


@dataclass(frozen=True)
class Tools:
    """``functions`` as OpenAI describes them; ``must``: call one of them, or none if it prefers."""

    functions: tuple[dict[str, Any], ...]
    must: bool

    @property
    def names(self) -> tuple[str, ...]:
        """The functions' names."""
        return tuple(each["function"]["name"] for each in self.functions)


def messages(of: dict[str, Any]) -> tuple[Message, ...]:
    """Check a request's messages.

    Raises:
        ApiError: 400.
    """
    found = of.get("messages")
    if not isinstance(found, list) or not 1 <= len(found) <= _MAX_MESSAGES:
        fields.refuse("messages", f"must be a list of 1 to {_MAX_MESSAGES} messages")
    return tuple(_message(f"messages[{at}]", message) for at, message in enumerate(found))


def tools(of: dict[str, Any]) -> Tools | None:
    """Check a request's tools; None where none may be called.

    Raises:
        ApiError: 400.
    """
    found, choice = of.get("tools"), of.get("tool_choice")
    if found is None:
        found = []
    if not isinstance(found, list) or len(found) > _MAX_TOOLS:
        fields.refuse("tools", f"must be a list of at most {_MAX_TOOLS}")
    functions = tuple(_tool(f"tools[{at}]", tool) for at, tool in enumerate(found))
    wanted, must = _choice(choice)
    if wanted is not None:
        functions = tuple(each for each in functions if each["function"]["name"] == wanted)
    if must and not functions:
        fields.refuse("tool_choice", "names no tool of this request")
    return None if choice == "none" or not functions else Tools(functions, must)


def _choice(choice: object) -> tuple[str | None, bool]:
    """The function that is asked for by name, and whether one must be called."""
    if choice is None or choice in ("none", "auto", "required"):
        return None, choice == "required"
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        fields.refuse("tool_choice", "must be none, auto, required or a function's name")
    return name, True


def _tool(param: str, tool: object) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, dict) else None
    if (
        not isinstance(function, dict)
        or not isinstance(tool, dict)
        or tool.get("type") != "function"
    ):
        fields.refuse(param.split("[")[0], "must be functions")
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        fields.refuse(f"{param}.function.name", "must be 1 to 64 letters, digits, _ and -")
    if parameters is None:
        parameters = {"type": "object", "properties": {}}
    if not isinstance(parameters, dict):
        fields.refuse(f"{param}.function.parameters", "must be a JSON schema")
    description = fields.text(f"{param}.function.description", function.get("description") or "")
    described = {
        "name": name,
        "description": description,
        "parameters": sampling_fields.checked(f"{param}.function.parameters", parameters),
    }
    return {"type": "function", "function": described}


def _message(param: str, message: object) -> Message:
    if not isinstance(message, dict):
        fields.refuse(param, "must be an object")
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        fields.refuse(f"{param}.role", f"must be one of {', '.join(_ROLES)}")
    made: Message = {"role": _ROLES[role]}
    calls = message.get("tool_calls") if role == "assistant" else None
    if calls:
        if not isinstance(calls, list) or len(calls) > _MAX_TOOLS:
            fields.refuse(f"{param}.tool_calls", f"must be a list of at most {_MAX_TOOLS}")
        made["tool_calls"] = [_call(f"{param}.tool_calls", call) for call in calls]
    content = message.get("content")
    made["content"] = "" if calls and content is None else _content(f"{param}.content", content)
    return made


def _call(param: str, call: object) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        fields.refuse(param, "must have functions with a name and arguments")
    name, arguments = (
        fields.text(f"{param}.function.{each}", function.get(each))
        for each in ("name", "arguments")
    )
    return {"type": "function", "function": {"name": name, "arguments": _object(arguments)}}


def _object(arguments: str) -> Any:
    """Arguments as templates want them: an object; what is none stays text."""
    try:
        found = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return arguments if fields.is_deep(found) else found


def _content(param: str, content: object) -> str:
    if isinstance(content, list):
        return "".join(_part(param, part) for part in content)
    return fields.text(param, content)


def _part(param: str, part: object) -> str:
    if not isinstance(part, dict) or part.get("type") != "text":
        fields.refuse(param, "may have parts of type text only", "unsupported_parameter")
    return fields.text(param, part.get("text"))
