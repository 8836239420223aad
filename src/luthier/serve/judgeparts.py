"""Verdicts as HTML and as a table for spreadsheets. Knows no component, no model and no recording."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from html import escape

from luthier.engines.base import Verdict, Zone
from luthier.serve import look
from luthier.serve.scale import drawn_scale, told_zone
from luthier.serve.similar import Similar

COLUMNS = ("name", "pass", "p_pass", "p_pass_calibrated", "borderline", "error")
_EVENTS = {
    "panel": "that the panel's grade reaches the pass mark",
    "rater": "that a rater drawn at random would pass it",
    "latent": "that the answer's true grade reaches the pass mark",
}
_QUESTION_CHARS = 120
_FORMULAS = ("=", "+", "-", "@")


def told_verdict(verdict: Verdict, zone: Zone | None) -> str:
    """A verdict: the word, the scale, whose probability it is, and all other figures."""
    assert verdict.p_pass is not None
    calibrated = verdict.p_pass_calibrated
    sure = verdict.p_pass if calibrated is None else calibrated
    facts = [("As the model gives it", f"{verdict.p_pass:.4f}")]
    facts.append(("Calibrated on held-out answers", "not on record" if calibrated is None else f"{calibrated:.4f}"))
    for words, value in (("Panel passes it", verdict.p_panel), ("A rater passes it", verdict.p_rater)):
        if value is not None:
            facts.append((words, f"{value:.4f}"))
    if verdict.grade_mean is not None:
        facts.append(("Expected grade", f"{verdict.grade_mean:.2f}"))
    word = "Pass" if verdict.passed else "Fail"
    border = " · borderline" if verdict.borderline else ""
    told = f"Shaded: {told_zone(zone)}." if zone else "No zone of borderline answers is on record for this model."
    return (
        f'<div class="verdict"><h2><span class="{word.lower()}">{word}</span>{border}</h2>'
        f"<p>{sure:.1%} is the {'' if calibrated is None else 'calibrated '}probability "
        f"{escape(_EVENTS.get(verdict.event, verdict.event))}.</p>{drawn_scale(sure, zone)}"
        f'<p class="quiet">The mark is at 0.5. {told}</p>{look.facts(facts)}</div>'
    )


def told_similar(found: Sequence[Similar], kept: bool) -> str:
    """What answers like it got. `kept`: such a model has held-out answers on record, as a final adapter has."""
    if not found:
        why = "No held-out answers are on record" if kept else "A checkpoint has no held-out answers on record"
        return f'<div class="quiet"><p>{why}, so none can be shown beside this one.</p></div>'
    rows = []
    for one in found:
        people = f"{one.grade:g}", _spread(one.raters), "pass" if one.passed else "fail"
        rows.append((*people, f"{one.p_pass:.3f}", _cut(one.question) or "–", one.id[:12]))
    caption = (
        "What similar answers got from people. Similar means here: of all held-out answers of this stage, those to "
        "which the model gives the nearest probability. Nobody compared what was said, or how it sounds."
    )
    heads = ("Grade", "Raters", "Verdict of people", "Probability", "Question", "Answer")
    return look.table(caption, heads, rows, (0, 3))


def _spread(raters: Sequence[float]) -> str:
    if not raters:
        return "–"
    low, high = min(raters), max(raters)
    return f"{len(raters)}, all {low:g}" if low == high else f"{len(raters)}, from {low:g} to {high:g}"


def _cut(question: str) -> str:
    line = " ".join(question.split())
    return line if len(line) <= _QUESTION_CHARS else f"{line[: _QUESTION_CHARS - 1]}…"


def verdict_table(found: Sequence[Verdict], model: str, whole: bool) -> str:
    """All verdicts of a batch; with the file to save once it is whole."""
    rows = [tuple(_cells(one)) for one in found]
    heads = ("Recording", "Verdict", "Probability", "Calibrated", "Borderline", "Why not")
    shown = look.table(f"Verdicts of {model}", heads, rows, (2, 3))
    if not whole:
        return shown
    saved = look.download("verdicts.csv", csv_of(found), "text/csv", "Save verdicts.csv")
    return f'{shown}<p class="links">{saved}</p>'


def csv_of(found: Sequence[Verdict]) -> bytes:
    """The table for spreadsheets; a text that one would take for a formula gets an apostrophe before it."""
    out = io.StringIO()
    writer = csv.writer(out)  # lines end as spreadsheets have it, so that a lone return in a name is quoted
    writer.writerow(COLUMNS)
    for verdict in found:
        name, *values, error = _cells(verdict)
        writer.writerow([_harmless(name), *values, _harmless(error)])
    return out.getvalue().encode("utf-8-sig")


def _cells(verdict: Verdict) -> list[str]:
    def figure(p: float | None) -> str:
        return "" if p is None else f"{p:.6f}"

    passed = "" if verdict.passed is None else "pass" if verdict.passed else "fail"
    border = "" if verdict.borderline is None else "yes" if verdict.borderline else "no"
    p, calibrated = figure(verdict.p_pass), figure(verdict.p_pass_calibrated)
    return [verdict.name, passed, p, calibrated, border, verdict.error]


def _harmless(text: str) -> str:
    # White space before it does not keep a spreadsheet from reading a formula.
    return f"'{text}" if text.strip().startswith(_FORMULAS) or text[:1] in ("\t", "\r", "\n") else text
