"""Bytes of tokens → text that may be sent: whole characters, and no part of a stop string."""

import codecs


class TextStream:
    """Hold back what may still change its meaning with the next token.

    A token's bytes may end inside a UTF-8 character, and its text inside a stop string; both wait.
    The result does not depend on where tokens cut the text: the stop string that ends first wins.
    """

    def __init__(self, stop: tuple[str, ...] = ()) -> None:
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped = False

    def push(self, piece: bytes) -> str:
        """Take a token's bytes and return the text that is now certain; may be empty."""
        text = self._held + self._decoder.decode(piece)
        if (cut := self._cut(text)) is not None:
            self.stopped, self._held = True, ""
            return text[:cut]
        keep = self._longest_open(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """Return what was held back; a character that never became whole is U+FFFD."""
        if self.stopped:
            return ""
        text = self._held + self._decoder.decode(b"", final=True)
        self._held = ""
        return text

    def _cut(self, text: str) -> int | None:
        """Where the stop string that ends first begins; of two that end together, the longer."""
        found = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        return min(found)[1] if found else None

    def _longest_open(self, text: str) -> int:
        """Length of the longest end of ``text`` that begins a stop string."""
        return max(
            (
                size
                for stop in self._stop
                for size in range(1, min(len(stop), len(text) + 1))
                if text.endswith(stop[:size])
            ),
            default=0,
        )
