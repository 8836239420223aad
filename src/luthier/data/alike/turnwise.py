"""A second look at conversations that are alike as a whole: turn by turn, is it the same talk?

Knows messages; refuses to know similarity of whole texts. A long passage before a short question outweighs it: rows
about one passage share most of their words, and yet ask and answer other things.
"""

from __future__ import annotations

import re

from luthier.schema import Message

LEAST = 0.5
"""Share of words (of those that either turn has) that two turns at one place have in common at least."""
_WORD = re.compile(r"\w+")


def same_talk(first: tuple[Message, ...], second: tuple[Message, ...], least: float = LEAST) -> bool:
    """Whether two conversations have the same speakers, tool calls, media and system prompts, and turns that agree.

    Turns agree where the Jaccard index of their sets of words is at least `least` (0 where they say one thing in other
    words); turns without words must be equal.
    """
    if [message.role for message in first] != [message.role for message in second]:
        return False
    return all(_same_turn(a, b, least) for a, b in zip(first, second, strict=True))


def _same_turn(first: Message, second: Message, least: float) -> bool:
    if first == second:
        return True
    media = [[part.media for part in turn.content if part.media] for turn in (first, second)]
    if first.more != second.more or media[0] != media[1]:
        return False
    a, b = (_WORD.findall(turn.text.casefold()) for turn in (first, second))
    if first.role == "system" or not (a and b):
        return a == b
    one, other = set(a), set(b)
    return len(one & other) >= least * len(one | other)
