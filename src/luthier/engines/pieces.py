"""Tokens as the text that they add, piece by piece, and the texts before which an answer ends.

The pieces of an answer, put together, are what all its tokens decode to at once: a letter of several tokens comes
whole, and the blank that a token begins with is neither lost nor doubled. Nothing that may yet be the beginning of a
stop text is given out before the next token shows what it is. Knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_UNFINISHED = "\ufffd"
"""What a decoder writes for bytes that are no letter yet."""


class TextPieces:
    """Decodes a growing list of ids.

    Only the ids since the last piece are decoded, together with those of that piece, which show the decoder that a text
    goes on. So the cost of a token does not grow with the answer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._begin = self._read = 0
        """Ids from `_begin` to `_read` are those of the last piece; from there on nothing was given out."""

    def add(self, token: int) -> str:
        """The text that is certain now; often "", as long as a letter is not whole."""
        self._ids.append(token)
        before, now = self._texts()
        if len(now) <= len(before) or now.endswith(_UNFINISHED):
            return ""
        self._begin, self._read = self._read, len(self._ids)
        return now[len(before) :]

    def rest(self) -> str:
        """What is left at the end: letters that were never finished."""
        before, now = self._texts()
        self._begin, self._read = self._read, len(self._ids)
        return now[len(before) :]

    def _texts(self) -> tuple[str, str]:
        decode = self._tokenizer.decode
        before = decode(self._ids[self._begin : self._read], skip_special_tokens=True)
        return before, decode(self._ids[self._begin :], skip_special_tokens=True)


class StopTexts:
    """Lets a text through up to the first of some stop texts, which is left out. `found`: one of them came."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.found = False

    def add(self, text: str) -> str:
        """As much of what is held and of `text` as cannot be part of a stop text any more."""
        self._held += text
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            self.found = True
            text, self._held = self._held[: min(places)], ""
            return text
        kept = max((_beginning(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - kept
        text, self._held = self._held[:cut], self._held[cut:]
        return text

    def rest(self) -> str:
        """What was held when the answer ended without a stop text."""
        text, self._held = self._held, ""
        return text


def _beginning(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
