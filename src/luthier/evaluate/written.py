"""Answers that a model writes, and the strict reading of them: what names no option, or several, names none.

This module knows nothing of exams' files and records.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from luthier.evaluate.exam_prompts import LETTERS

_LETTER = re.compile(
    r"(?:(?:the\s+)?(?:right\s+|correct\s+)?(?:answer|option)(?:\s+is)?\s*:?\s*)?"
    r"(?P<open>\()?(?P<letter>[A-Z])(?(open)\)|[.:)]?)(?:\s+(?P<rest>.+?))?\s*[.]?",
    re.IGNORECASE | re.DOTALL,
)


def parse_choice(text: str, options: Sequence[str]) -> int:
    """The option that a written answer names, counted in the order shown; -1 where it names none or several.

    An answer is a letter, alone or as `(B)`, `B.`, `Answer: B`, with or without that option's text after it; or exactly
    an option's text. Blanks around it, a final full stop and case do not matter.
    """
    said = _plain(text)
    if not said:
        return -1
    named = {place for place, option in enumerate(options) if said == _plain(option)}
    match = _LETTER.fullmatch(text.strip())
    if match is not None:
        place = LETTERS.index(match["letter"].upper())
        if place < len(options) and (match["rest"] is None or _plain(match["rest"]) == _plain(options[place])):
            named.add(place)
    return named.pop() if len(named) == 1 else -1


def _plain(text: str) -> str:
    return " ".join(text.split()).removesuffix(".").casefold()
