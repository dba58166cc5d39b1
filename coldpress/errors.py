"""Every error a user can meet: what and where in the message, what to do now in the hint.

    ColdpressError              1   something failed; the message says what
    ├── UsageError              2   change an option or argument
    ├── GateError               3   a limit set for CI is not met
    ├── ToolError               4   install or fix a program or an extra
    ├── InputError              5   give another file or folder
    ├── NotAModelError         10   point to a Hugging Face model folder
    ├── UnsupportedModelError  11   choose an architecture that llama.cpp runs
    ├── CorruptModelError      12   fetch the model's weights again
    ├── UnknownTypeError       13   name a quantization type that exists
    ├── RecipeError            14   mend the recipe
    ├── IntegrityError         15   fetch or build the artifact again
    ├── TooLargeError          16   choose a smaller model or another target
    ├── PortInUseError         17   choose another port
    ├── PromptTooLongError     18   shorten the prompt or raise the context
    ├── RemoteError            19   check the address, the token or the network
    ├── SignatureError         20   give the key of who signed it, or do not use it
    ├── DiskFullError          21   free some space, or choose another folder
    └── TrainingError          22   train more gently, or go on from the last good state

The command line prints two lines and exits with the number; see ``cli.main``.
"""

_MAX_CHARACTERS = 1000


class ColdpressError(Exception):
    """Something failed in a way the user can do something about.

    Args:
        message: what went wrong and where, one line, no final full stop.
        hint: what to do now, one line; empty only where nothing can be done.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        self.message = one_line(message)
        super().__init__(self.message)
        self.hint = hint


def one_line(text: str) -> str:
    """Make a text safe to print: names come out of files, and may move a terminal's cursor."""
    shown = text if len(text) <= _MAX_CHARACTERS else f"{text[: _MAX_CHARACTERS - 1]}…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


class UsageError(ColdpressError):
    """An option or argument has a value that cannot work."""

    exit_code = 2


class GateError(ColdpressError):
    """A measured figure breaks a limit that the caller set."""

    exit_code = 3


class ToolError(ColdpressError):
    """Another program or an optional package is missing or failed."""

    exit_code = 4


class InputError(ColdpressError):
    """A file or folder given as input is missing, empty or of the wrong kind."""

    exit_code = 5


class NotAModelError(ColdpressError):
    """The folder is not a Hugging Face causal language model."""

    exit_code = 10


class UnsupportedModelError(ColdpressError):
    """llama.cpp does not run this architecture, or would run it wrongly."""

    exit_code = 11


class CorruptModelError(ColdpressError):
    """The model's weights are truncated or do not match their index."""

    exit_code = 12


class UnknownTypeError(ColdpressError):
    """No quantization type or preset has this name."""

    exit_code = 13


class RecipeError(ColdpressError):
    """A recipe has an unknown key, a missing key or a value of the wrong type."""

    exit_code = 14


class IntegrityError(ColdpressError):
    """Bytes are not what their recorded digest says."""

    exit_code = 15


class TooLargeError(ColdpressError):
    """An artifact breaks a platform's limit."""

    exit_code = 16


class PortInUseError(ColdpressError):
    """Another process listens on the port."""

    exit_code = 17


class PromptTooLongError(ColdpressError):
    """The prompt does not fit into the model's context."""

    exit_code = 18


class RemoteError(ColdpressError):
    """A server does not give what was asked for: missing, forbidden, out of reach, or misbehaving."""

    exit_code = 19


class SignatureError(ColdpressError):
    """What should be signed is not, or not with this key, or was changed afterwards."""

    exit_code = 20


class DiskFullError(ColdpressError):
    """There is no room for what is being written; nothing half-written stays."""

    exit_code = 21


class TrainingError(ColdpressError):
    """Training came to numbers that are none."""

    exit_code = 22
