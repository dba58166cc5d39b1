"""What pydantic found wrong, in one line."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


def first_problem(error: "ValidationError") -> str:
    """Where the first of the problems is and what it is, and how many more there are."""
    problems = error.errors(include_url=False, include_input=False)
    where = ".".join(str(part) for part in problems[0]["loc"])
    more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{where or 'it'}: {problems[0]['msg']}{more}"
