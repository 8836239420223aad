"""Long texts cut into passages: at the ends of paragraphs, else of sentences, else between words.

Nothing is lost but the white space at the cuts. Knows the text of a draft; refuses to know files and formats.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

from luthier.schema import NO_TARGET, Draft, Message, Part

CHARACTERS = 10
"""A passage of N words has at most N times so many characters: some scripts put no spaces between words."""
_ENDS = tuple(
    re.compile(pattern)
    for pattern in (
        r"\n[^\S\n]*\n\s*",  # paragraphs
        r"[.!?…][\"'”’)\]]*\s++(?![a-z])|[。！？][」』”]*\s*|\n",  # sentences, and lines
        r"\s+",
    )
)


class _Span(NamedTuple):
    """Characters start to end of a text, and at most so many words in them."""

    start: int
    end: int
    words: int


def passages(draft: Draft, most: int) -> list[Draft]:
    """The drafts of a text's passages, in order, all of one group; a draft that is no text, or short, as it is.

    Each has at most `most` words (0: any number). The group is the record's own, or that of the whole text.
    """
    row = draft.row
    if most < 1 or len(row.messages) != 1 or row.target != NO_TARGET:
        return [draft]
    (message,) = row.messages
    if message.role != "assistant" or len(message.content) != 1 or message.content[0].type != "text":
        return [draft]
    text = message.content[0].text or ""
    pieces = cut(text, most)
    if len(pieces) < 2:
        return [draft]
    group = row.group or f"t-{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:16]}"
    found = []
    for number, piece in enumerate(pieces, 1):
        where = replace(row.provenance, origin=f"{row.provenance.origin} passage {number}")
        one = Message(message.role, (Part("text", piece),), message.more)
        found.append(replace(draft, row=replace(row, messages=(one,), group=group, provenance=where)))
    return found


def cut(text: str, most: int) -> list[str]:
    """A text in pieces of at most `most` words and `most` x CHARACTERS characters, without blanks around them."""
    spans = _pieces(text, 0, len(text), most, 0)
    return [piece for span in spans if (piece := text[span.start : span.end].strip())]


def _pieces(text: str, start: int, end: int, most: int, level: int) -> list[_Span]:
    """The stretch as it is where it fits; else its parts, each cut further if it must be, joined while they fit."""
    whole = _Span(start, end, len(text[start:end].split()))
    if _fits(whole, most):
        return [whole]
    if level == len(_ENDS):  # one word, or a script without spaces
        step = most * CHARACTERS
        return [_Span(at, min(at + step, end), 1) for at in range(start, end, step)]
    found: list[_Span] = []
    for here, there in _parts(text, start, end, level):
        for span in _pieces(text, here, there, most, level + 1):
            joined = found and _Span(found[-1].start, span.end, found[-1].words + span.words)
            if joined and _fits(joined, most):
                found[-1] = joined
            else:
                found.append(span)
    return found


def _fits(span: _Span, most: int) -> bool:
    return span.words <= most and span.end - span.start <= most * CHARACTERS


def _parts(text: str, start: int, end: int, level: int) -> list[tuple[int, int]]:
    """The stretch between one end of its level and the next."""
    edges = [start, *(match.end() for match in _ENDS[level].finditer(text, start, end)), end]
    return [(here, there) for here, there in pairwise(edges) if there > here]
