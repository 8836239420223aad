"""Items that one candidate has right and another wrong, with their text: what training mended, and what it broke.

This module refuses to know about files: questions and answers go in as records.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.outcome.exams.view import Candidate, ExamView

SHOWN = 20
"""Items of each kind with their text; the counts are whole."""
Json = dict[str, Any]


def flips(view: ExamView) -> Json:
    """`before` and `after` by name, `fixed` and `broken` (at most SHOWN items each) and their whole counts.

    From the base to the chosen one; where the base is the chosen one to the best of the others, and where there is no
    base from the runner-up to the best. Empty where fewer than two sat.
    """
    pair = _pair(view)
    if pair is None:
        return {}
    before, after = ({str(row.get("id")): row for row in one.predictions} for one in pair)
    shared = [name for name in before if name in after]
    turned = [name for name in shared if bool(before[name].get("correct")) != bool(after[name].get("correct"))]
    fixed = [name for name in turned if after[name].get("correct")]
    broken = [name for name in turned if before[name].get("correct")]
    return {
        "before": pair[0].shown,
        "after": pair[1].shown,
        "both": len(shared),
        "kinds": [
            (word, len(ids), [_item(view.items, name, before[name], after[name]) for name in ids[:SHOWN]])
            for word, ids in (("Fixed", fixed), ("Broken", broken))
        ],
    }


def _pair(view: ExamView) -> tuple[Candidate, Candidate] | None:
    ranked = sorted(view.candidates, key=lambda one: -one.accuracy["value"])
    after = view.picked or (ranked[0] if ranked else None)
    others = [one for one in ranked if one is not after]
    if after is None or not others:
        return None
    if view.base is after:
        return after, others[0]
    return view.base or others[0], after


def _item(items: Mapping[str, Json], name: str, before: Json, after: Json) -> Json:
    item = items.get(name) or {}
    options = [str(option) for option in item.get("options") or []]
    media = item.get("media") or []
    return {
        "id": name,
        "question": "\n".join(str(part) for part in (item.get("before"), item.get("question")) if part),
        "media": ", ".join(str(part.get("type")) for part in media if isinstance(part, dict)),
        "answer": _named(options, after.get("answer"), ""),
        "before": _named(options, before.get("choice"), str(before.get("text") or "")),
        "after": _named(options, after.get("choice"), str(after.get("text") or "")),
    }


def _named(options: list[str], choice: Any, text: str) -> str:
    """An option by its letter and text, or what was written in its place."""
    if not isinstance(choice, int) or choice < 0:
        return f"none of them: {text}" if text else "none of them"
    letter = chr(ord("A") + choice) if choice < 26 else str(choice + 1)
    return f"{letter}: {options[choice]}" if choice < len(options) else letter
