"""Single items on which two runs part: what the second has right and the first wrong, and the other way round.

For chats, where nothing is right or wrong, the rows whose answers became likelier or less likely by most bits a byte.
Texts come from records: the items of an exam, or the rows of a run's table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations

import numpy as np

from luthier.outcome.comparing.items import Matched
from luthier.outcome.comparing.runrecords import Json

SHOWN = 20
"""Items of each kind that are given with their text."""
EVERY_PAIR = 3
"""Runs up to which every pair is shown; of more, each against the first."""
Describe = Callable[[str, int], str]
"""(item id, run's place) -> what that run said of the item."""


def flips(matched: Matched, texts: Callable[[set[str]], Mapping[str, str]], said: Describe) -> list[Json]:
    """One mapping a pair of runs: {"a", "b", "fixed", "broken"}, each {"n", "items": [{id, text, a, b}]}.

    `fixed` are items that b has right and a has not; of chats those that b knows better.
    """
    if not matched.measures or not len(matched):
        return []
    measure = matched.measures[0]
    found = []
    count = len(matched.runs)
    for a, b in combinations(range(count), 2) if count <= EVERY_PAIR else ((0, b) for b in range(1, count)):
        gain_N = measure.value_KN[b] - measure.value_KN[a]
        gain_N = -gain_N if measure.lower_is_better else gain_N
        order = np.argsort(-gain_N, kind="stable")
        fixed, broken = order[gain_N[order] > 0], order[::-1][gain_N[order[::-1]] < 0]
        pair = {"a": matched.runs[a], "b": matched.runs[b]}
        for kind, places in (("fixed", fixed), ("broken", broken)):
            ids = [matched.ids[place] for place in places[:SHOWN].tolist()]
            known = texts(set(ids))
            shown = [{"id": name, "text": known.get(name, ""), "a": said(name, a), "b": said(name, b)} for name in ids]
            pair |= {kind: {"n": len(places), "items": shown}}  # type: ignore[dict-item]
        found.append(pair)
    return found


def item_text(item: Json) -> str:
    """An exam's item as it is read: passage, question, lettered options, the right one marked."""
    lines = [item.get("before", ""), item.get("question", "")]
    for place, option in enumerate(item.get("options", [])):
        lines.append(f"{chr(65 + place)}. {option}" + (" ← right" if place == item.get("answer") else ""))
    return "\n".join(line for line in lines if line)


def letter(choice: int) -> str:
    """A choice as the letter of its option; a dash for none."""
    return chr(65 + choice) if choice >= 0 else "–"
