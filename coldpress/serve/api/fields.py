"""Fields of a request's JSON, checked one by one, and the error that names the bad one."""

import math
from typing import Any, NoReturn

_MAX_DEPTH = 128


class ApiError(Exception):
    """An answer that says what is wrong, in the shape of OpenAI's errors."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        *,
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
        kind = "invalid_request_error" if status < 429 else "server_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def number(of: dict[str, Any], name: str, default: float, low: float, high: float) -> float:
    """A number within bounds."""
    value = of.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        refuse(name, "must be a number")
    if math.isnan(value) or not low <= value <= high:
        refuse(name, f"must be from {low} to {high}")
    return float(value)


def integer(of: dict[str, Any], name: str, default: Any, low: int, high: int) -> Any:
    """An integer field; ``default`` may be None."""
    value = of.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        refuse(name, "must be an integer")
    if not low <= value <= high:
        refuse(name, f"must be from {low} to {high}")
    return value


def flag(of: dict[str, Any], name: str) -> bool:
    """A boolean, false by default."""
    value = of.get(name)
    if value is not None and not isinstance(value, bool):
        refuse(name, "must be true or false")
    return bool(value)


def text(param: str, value: object) -> str:
    """A string that is text."""
    if not isinstance(value, str):
        refuse(param, "must be a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        refuse(param, "has half a surrogate pair, which is not text")
    return value


def is_deep(value: object) -> bool:
    """Whether JSON is nested so deep that those who walk it might meet Python's limit."""
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [
            child
            for each in level
            for child in (
                each.values() if isinstance(each, dict) else each if isinstance(each, list) else ()
            )
        ]
        if not level:
            return False
    return True


def refuse(param: str, why: str, code: str = "invalid_value") -> NoReturn:
    """Refuse a field."""
    raise ApiError(400, f"{param} {why}", code, param=param)
