"""Which charts an exam's records give, each with its heading and what to read from it.

One that needs what is not there is left out. This module refuses to know about files and pages.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from luthier.outcome import charts, chatpart, figures
from luthier.outcome.exams import charts as examcharts
from luthier.outcome.exams import curves as examcurves
from luthier.outcome.exams.charts import Estimate, Mark, shorten
from luthier.outcome.exams.itemmap import item_map
from luthier.outcome.exams.view import Candidate, ExamView, Gap
from luthier.outcome.exams.words import chance_of, points
from luthier.outcome.figures import percent
from luthier.outcome.statistics.power import minimum_detectable_effect, smallest_gap

Json = dict[str, Any]
Chart = tuple[str, str, Markup, str]
"""Its name for files, its heading, the SVG (empty: not run), and the note below it."""


_PAIRED = "On the same questions; p is corrected for the number of comparisons. Grey: cannot be told apart."


def exam_charts(view: ExamView, place: str, metrics: Sequence[Json]) -> list[Chart]:
    """The charts that this exam's records give; one that needs what is not there is left out."""
    if not view.candidates:
        return []
    where, most = f"{place} on {view.name}" if place else view.name, len(view.candidates) > 1
    found: Iterable[tuple[str, str, str, str]] = (  # neighbours are of about one height
        (
            "curve",
            "Over the steps",
            _curve_chart(view, where) if most else "",
            "The band holds all checkpoints at once. Orange: the best, corrected for being the best of many.",
        ),
        (
            "power",
            "What more questions would show",
            _power_chart(view, where) if most else "",
            "Two-sided 5%, paired, at the share of questions on which answers differ here.",
        ),
        (
            "scores",
            "Scores",
            _score_chart(view, where),
            "Bars are 95% intervals, one by one. Whether two differ is asked by the paired differences, not by them.",
        ),
        (
            "map",
            "Questions and candidates",
            _map(view, where),
            "A strip a candidate, a column a question. What nobody knows stands at the right.",
        ),
        (
            "against-base",
            "Difference to the base",
            _gap_chart(view, "against_base", f"Paired differences to the base, {where}"),
            _PAIRED,
        ),
        (
            "against-best",
            "Difference to the best",
            _gap_chart(view, "against_best", f"Paired differences to the best, {where}"),
            _PAIRED,
        ),
        (
            "groups",
            "Who cannot be told apart",
            _groups_chart(view, where) if most else "",
            "Two that share a column cannot be told apart. Ranks within a column mean nothing.",
        ),
        (
            "place",
            "Which place is preferred",
            _place_chart(view, where),
            "Asked in both orders: who knows nothing and prefers a place is hardly ever right in both.",
        ),
        (
            "reliability",
            "Reliability",
            _reliability(view, where),
            "Probability of the chosen option; on the dotted line, confidence comes true.",
        ),
        ("cost", "Cost and score", *_cost_chart(view, where, metrics)),
    )
    return [(name, heading, Markup(svg), note) for name, heading, svg, note in found if svg]  # charts escape their text


def _estimate(view: ExamView, one: Candidate, note: str = "") -> Estimate:
    figure = one.accuracy
    css = "s0" if one is view.base else "s1"
    return Estimate(one.shown, figure["value"], figure["low"], figure["high"], note, css, ring=one is view.picked)


def _score_chart(view: ExamView, where: str) -> str:
    shares = (("chance", "guessing"), ("majority", "always one place"))
    marks = [Mark(share, f"{word} {percent(share)}") for key, word in shares if (share := view.share(key)) is not None]
    rows = [_estimate(view, one, percent(one.accuracy["value"])) for one in view.candidates]
    return examcharts.estimate_chart(
        f"Scores of {where}",
        rows,
        marks,
        f"right, %; ringed: {'chosen' if view.chosen else 'kept' if view.kept else 'best'}",
    )


def _curve_chart(view: ExamView, where: str) -> str:
    sat = view.checkpoints
    if len(sat) < 2:
        return ""
    corrected = figures.score(view.table.get("corrected"))
    whole = bool(corrected) and corrected["low"] is not None
    curve = examcurves.Curve(
        points=[(float(one.step or 0), one.accuracy["value"]) for one in sat],
        band=[one.band for one in sat if one.band],
        base=view.base.accuracy["value"] if view.base else None,
        picked=view.picked.step if view.picked else None,
        word="chosen" if view.chosen else "kept" if view.kept else "best",
        best=view.best.step if view.best else None,
        corrected=(corrected["value"], corrected["low"], corrected["high"]) if whole else None,
    )
    return examcurves.curve_chart(f"Right answers by step, {where}", curve)


def _gap_chart(view: ExamView, key: str, title: str) -> str:
    rows = []
    for one in view.candidates:
        gap: Gap | None = getattr(one, key)
        if gap is not None:
            told = gap.p is not None and gap.p <= view.alpha
            note = f"{points(gap.value)}  {chance_of(gap.p)}".rstrip()
            css = "s1" if told else "s0"
            rows.append(Estimate(one.shown, gap.value, gap.low, gap.high, note, css, ring=one is view.picked))
    return examcharts.estimate_chart(title, rows, [Mark(0.0, "no difference")], "points")


def _groups_chart(view: ExamView, where: str) -> str:
    rows = [(one.shown, one.accuracy["value"], one.group) for one in view.candidates]
    return examcharts.groups_chart(f"Groups of {where}", rows) if all(own for _, _, own in rows) else ""


def _map(view: ExamView, where: str) -> str:
    """Those whose answers are to the same questions as the first's."""
    right = [{str(row.get("id")): bool(row.get("correct")) for row in one.predictions} for one in view.candidates]
    ids = list(right[0])
    same = [place for place, own in enumerate(right) if own.keys() == right[0].keys()]
    correct_KN = np.array([[right[place][name] for name in ids] for place in same], dtype=bool)
    return item_map(f"Wrong answers of {where}", [view.candidates[place].shown for place in same], correct_KN)


def _place_chart(view: ExamView, where: str) -> str:
    rows = []
    for one in view.candidates:
        first, both = one.score("swap.first"), one.score("swap.consistent")
        if first and both:
            rows.append((one.shown, first["value"], both["value"]))
    return examcharts.place_chart(f"Preferred place, {where}", rows, view.share("chance") or 0.5)


def _reliability(view: ExamView, where: str) -> str:
    series = []
    for one in [view.picked, view.base if view.base is not view.picked else None]:
        if one is not None:
            rows = [(sure, bool(row.get("correct"))) for row in one.predictions if (sure := _sure(row)) is not None]
            bins = figures.equal_mass_bins([sure for sure, _ in rows], [right for _, right in rows])
            series.append((shorten(one.shown, 24), bins))
    return charts.reliability_chart(f"Reliability of {where}", series, "share right")


def _sure(row: Json) -> float | None:
    """Probability of the chosen option by the softmax of the options' log-likelihoods; None without them."""
    logprobs, choice = row.get("logprobs") or [], row.get("choice")
    if not isinstance(choice, int) or not 0 <= choice < len(logprobs) or not all(map(figures.finite, logprobs)):
        return None
    top = max(logprobs)
    return math.exp(logprobs[choice] - top) / sum(math.exp(value - top) for value in logprobs)


def _cost_chart(view: ExamView, where: str, metrics: Sequence[Json]) -> tuple[str, str]:
    """Over the seconds of training where its log tells them, else over those of the exam itself."""
    clock = chatpart.series(metrics, "seconds")
    spent: list[tuple[Candidate, float]] = []
    if clock:
        spent = [(view.base, 0.0)] if view.base else []
        for one in view.checkpoints:
            until = [seconds for step, seconds in clock if step <= (one.step or 0)]
            spent += [(one, until[-1])] if until else []
    else:
        spent = [(one, one.sat["seconds"]) for one in view.candidates if figures.finite(one.sat.get("seconds"))]
    if len(spent) < 2:
        return "", ""
    size, unit = _unit(max(seconds for _, seconds in spent))
    drawn = [(_estimate(view, one), seconds / size) for one, seconds in spent]
    axis = f"{unit} of training" if clock else f"{unit} for the exam"
    return examcurves.cost_chart(f"Cost and score, {where}", drawn, axis), "Further left is cheaper."


def _unit(most: float) -> tuple[float, str]:
    return (1.0, "seconds") if most < 180 else (60.0, "minutes") if most < 10_800 else (3600.0, "hours")


def _power_chart(view: ExamView, where: str) -> str:
    share, gap = view.table.get("discordance"), view.table.get("minimum_detectable_effect")
    never = smallest_gap(view.count, alpha=view.alpha) if view.count else None
    if not all(map(figures.finite, (share, gap, never))) or share is None or gap is None or never is None:
        return ""
    ends = math.log10(min(50, view.count)), math.log10(max(20_000, 2 * view.count))
    counts = [round(10**power) for power in np.linspace(*ends, 60).tolist()]
    gaps = [(count, minimum_detectable_effect(count, share, alpha=view.alpha)) for count in counts]
    known = [(float(count), found) for count, found in gaps if found is not None]
    return examcurves.power_chart(f"Gaps that {where} can show", known, (view.count, gap), never)
