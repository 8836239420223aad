"""What is hidden among the generated rows: copies, near copies, siblings of one template, broken rows.

Knows how to change a conversation's words; refuses to know files. A conversation is a list of (role, text) with
the roles user, assistant and system.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from words import ENTITY, FREQUENT, NAMES

Talk = list[tuple[str, str | None]]
BROKEN = ("null_conversations", "empty_conversations", "empty_answer", "null_value", "unknown_role", "no_answer")
COPIES = ("same", "case", "space")


def copied(talk: Talk, how: str) -> Talk:
    """The same conversation: byte by byte, in other case, or with other white space."""
    if how == "case":
        return [(role, (text or "").lower()) for role, text in talk]
    if how == "space":
        return [(role, (text or "").replace(", ", ",  ").replace(". ", ".\n") + " \n") for role, text in talk]
    return list(talk)


def edited(talk: Talk, share: float, words: Sequence[str], rng: np.random.Generator) -> Talk:
    """A near copy: `share` of all words replaced, left out or joined by a new one; only words in lower case change."""
    pieces = [(role, (text or "").split(" ")) for role, text in talk]
    places = [(i, j) for i, (_, found) in enumerate(pieces) for j, w in enumerate(found) if w.isascii() and w.islower()]
    places = [(i, j) for i, j in places if pieces[i][1][j].isalpha()]
    total = sum(len(found) for _, found in pieces)
    count = min(len(places), max(1, round(share * total)))
    for pick in rng.choice(len(places), count, replace=False).tolist():
        i, j = places[pick]
        old, new = pieces[i][1][j], words[int(rng.integers(len(FREQUENT), 20_000))]
        pieces[i][1][j] = (new, new, new, "", f"{old} {new}")[int(rng.integers(5))]
    return [(role, " ".join(word for word in found if word)) for role, found in pieces]


def entities(talk: Talk) -> int:
    """How many names and numbers a sibling could differ in."""
    return sum(len(ENTITY.findall(text or "")) for _, text in talk)


def sibling(talk: Talk, rng: np.random.Generator) -> Talk:
    """The same template filled with other names and numbers: two to six of them change, each to one of its kind."""
    total = entities(talk)
    chosen = set(rng.choice(total, min(total, int(rng.integers(2, 7))), replace=False).tolist())
    seen = -1

    def other(found: str) -> str:
        nonlocal seen
        seen += 1
        if seen not in chosen:
            return found
        if found.isdigit():
            return str(int(found) + int(rng.integers(1, 9_000)))
        return NAMES[(NAMES.index(found) + int(rng.integers(1, len(NAMES)))) % len(NAMES)]

    return [(role, ENTITY.sub(lambda match: other(match.group()), text or "")) for role, text in talk]


def broken(talk: Talk, how: str) -> Talk | None:
    """A conversation that no model should be trained on, in one of the ways of BROKEN."""
    if how == "null_conversations":
        return None
    if how == "empty_conversations":
        return []
    question = next((turn for turn in talk if turn[0] == "user"), ("user", "why?"))
    if how == "no_answer":
        return [question]
    if how == "unknown_role":
        return [question, ("narrator", talk[-1][1])]
    return [question, ("assistant", "  " if how == "empty_answer" else None)]
