"""What an exam's figures bear, in sentences: who is chosen and why, how that one stands to the base, what is suspect.

Sentences say no more than the records do: a figure that is missing leaves its sentence out. This module refuses to know
about files and pages.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from luthier.outcome import figures
from luthier.outcome.exams.view import Candidate, ExamView, Gap, Json
from luthier.outcome.figures import percent

_STEP = re.compile(r"\bstep-0*(\d+)")
NAMED = 4
"""Names in a sentence at most; the rest is counted."""


def points(value: float, sign: str = "+") -> str:
    """A difference of shares in points of a hundred: +3.7."""
    return f"{100 * value:{sign}.1f}"


def within(figure: Json) -> str:
    """A share with its interval: 76.5% [69.5, 82.4]."""
    ends = "" if figure["low"] is None else f" [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"
    return percent(figure["value"]) + ends


def counted(answers: str) -> str:
    """How a file's answers are written, as the reader found it: 0, 1, letter or text."""
    return {"letter": "given as letters", "text": "given as the options' words"}.get(answers, f"counted from {answers}")


def chance_of(p: float | None) -> str:
    """A p-value as `p = 0.012`; empty for none."""
    if p is None:
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def names(candidates: Sequence[Candidate]) -> str:
    """a, b, c, d and 3 more."""
    shown = [one.shown for one in candidates[:NAMED]]
    more = len(candidates) - len(shown)
    return ", ".join(shown[:-1] if len(shown) > 1 and not more else shown) + (
        f" and {more} more" if more else f" and {shown[-1]}" if len(shown) > 1 else ""
    )


def verdict(view: ExamView) -> list[str]:
    """Who is chosen and why, and how that one stands to the base."""
    if not view.candidates:
        return ["Nobody has sat this exam to its end." if view.ran else "This exam was not run."]
    first = _kept(view.kept) if view.kept is not None and view.chosen is None else _choice(view)
    return [first, against] if (against := _against_base(view)) else [first]


def bears(view: ExamView) -> list[str]:
    """What else the figures bear, as their record says it: baselines, reach, reservations; but not the choice again."""
    said = f"{view.chosen.name} is chosen: " if view.chosen else None
    notes = [str(note) for note in view.table.get("notes") or []]
    return [_capital(_STEP.sub(r"step \1", note)) for note in notes if said is None or not note.startswith(said)]


def _kept(kept: Candidate) -> str:
    """Of an exam that only reports: its own best is nobody's choice and goes without a word."""
    return (
        f"{_start(kept)} is kept, with {within(kept.accuracy)} right. This exam did not choose it, so that the choice "
        "does not flatter it."
    )


def _choice(view: ExamView) -> str:
    best, chosen = view.best, view.chosen
    if best is None:
        return "The best of them is not recorded."
    score = within(best.accuracy)
    if len(view.candidates) == 1:
        return f"{_start(best)} answers {score} of {figures.count(view.count)} questions rightly."
    if chosen is None:
        equal = [one for one in view.candidates if one is not best and set(one.group) & set(best.group)]
        line = f"{_start(best)} is the best of {len(view.candidates)}, with {score} right"
        return line + (f"; {names(equal)} cannot be told from it." if equal else "; all others are below it.")
    if chosen is best:
        return f"{_start(chosen)} is chosen: it is the best, with {score} right, and no earlier one equals it."
    return f"{_start(chosen)} is chosen: the earliest that cannot be told from the best ({best.shown}, {score} right)."


def _against_base(view: ExamView) -> str:
    base, picked = view.base, view.picked
    if base is None or picked is None or picked.against_base is None:
        return ""
    gap, others = picked.against_base, len(view.candidates) - 1
    line = (
        f"It answers {figures.count(picked.right)} of {figures.count(picked.accuracy['n'])} rightly, "
        f"{within(picked.accuracy)}, and the base {percent(base.accuracy['value'])}: {_gap(gap)}"
    )
    if gap.p is None:
        return line + "."
    corrected = f"{chance_of(gap.p)} after correction for {others} comparisons" if others > 1 else chance_of(gap.p)
    return line + (f", {corrected}." if gap.p <= view.alpha else f"; the two cannot be told apart ({corrected}).")


def _gap(gap: Gap) -> str:
    return f"{points(gap.value)} points [{points(gap.low)}, {points(gap.high)}]"


def alarms(view: ExamView) -> list[str]:
    """What makes a score mean nothing."""
    return [
        f"The adapter of {one.shown} moves no answer: its log-likelihoods equal the base's."
        for one in view.candidates
        if one.sat.get("same_as_base") is True
    ]


def _start(one: Candidate) -> str:
    return _capital(one.shown)


def _capital(shown: str) -> str:
    """A name at the start of a sentence: only our own word is set in capitals, never a model's name."""
    return "S" + shown[1:] if shown.startswith("step ") else shown
