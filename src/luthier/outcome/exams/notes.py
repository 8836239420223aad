"""Plain sentences under an exam's table: what its figures can and cannot bear.

The module refuses to know answers: it words what examined.py has found.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.exam_records import ExamRecord, SatRecord
from luthier.outcome.statistics import above_chance, holm, more_questions_sentence, smallest_gap

_NAMED = 5
_LEANS = 0.8
"""How far, of the way from no preference to always the first, choices may lean before a sentence says so."""


def exam_notes(
    table: dict[str, Any], exam: ExamRecord, groups: Sequence[str], records: Sequence[SatRecord]
) -> list[str]:
    """Sentences in the order a reader needs them: the choice, what cannot be told apart, baselines, reservations."""
    return [
        *_choice(table),
        *_by_loss(table, exam),
        *_reach(table, groups),
        *_baselines(table),
        *_habits(table),
        *_reservations(table, exam, groups, records),
    ]


def _choice(table: dict[str, Any]) -> list[str]:
    found, best, chosen = [], table["best"], table["chosen"]
    if chosen == best:
        found.append(f"{best} is chosen: the best, and no earlier one equals it.")
    elif chosen is not None:
        found.append(f"{chosen} is chosen: the earliest that cannot be told from the best ({best}).")
    by_name = {row["name"]: row for row in table["candidates"]}
    against = by_name[chosen or best]["against_base"]
    if against is not None and against["p_adjusted"] > table["alpha"]:
        found.append(f"{chosen or best} cannot be told from the base on these questions.")
    elif against is not None and against["value"] < 0:
        found.append(f"{chosen or best} is worse than the base.")
    more = table["more_questions"]
    # Of two with the same score it says no more than the sentence before, where that is of the same two.
    if more is not None and (more["questions"] is not None or against is None or chosen is None):
        found.append(more_questions_sentence((more["pair"][0], more["pair"][1]), table["n"], more["questions"]))
    corrected = table["corrected"]
    if corrected["of"] > 1:
        raw = by_name[best]["scores"]["accuracy"]["value"]
        found.append(
            f"The best of {corrected['of']} scores {_percent(raw)}; on questions that did not help to choose it, "
            f"{_percent(corrected['value'])} ({_percent(corrected['ci'][0])} to {_percent(corrected['ci'][1])})."
        )
    return found


def _by_loss(table: dict[str, Any], exam: ExamRecord) -> list[str]:
    """The picked one's option log-loss against the base's: more power from the same questions. p is Holm's over all
    that stand beside the base, for the picked one is one of them."""
    beside = [row for row in table["candidates"] if (row["against_base"] or {}).get("log_loss")]
    p_values = dict(
        zip(
            (row["name"] for row in beside),
            holm([row["against_base"]["log_loss"]["p"] for row in beside]),
            strict=True,
        )
    )
    picked = table["chosen"] or table["best"]
    if picked not in p_values or exam.settings.get("normalization", "none") != "none":
        return []
    gap = next(row["against_base"]["log_loss"] for row in beside if row["name"] == picked)
    p = p_values[picked]
    how = "cannot be told from" if p > table["alpha"] else "is lower than" if gap["value"] < 0 else "is higher than"
    shown = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    return [
        f"By log loss, which sees more than right and wrong: that of {picked} {how} the base's "
        f"({gap['value']:+.3f} nats [{gap['ci'][0]:+.3f}, {gap['ci'][1]:+.3f}], paired t, {shown})."
    ]


def _habits(table: dict[str, Any]) -> list[str]:
    """Answers that follow the place of an option, and scores that follow the wording of a question."""
    found = []
    scores = {row["name"]: row["scores"] for row in table["candidates"]}
    blind = [
        f"{name} ({_percent(own['swap.first']['value'])})"
        for name, own in scores.items()
        if "swap.first" in own and abs(own["swap.first"]["value"] - table["chance"]) > _LEANS * (1 - table["chance"])
    ]
    if blind:
        found.append(f"Answers by place, whatever stands there (share of choices of the first): {_names(blind)}.")
    spreads = {name: own["prompt.spread"]["value"] for name, own in scores.items() if "prompt.spread" in own}
    if spreads:
        most = max(spreads, key=lambda name: spreads[name])
        found.append(f"Between the wordings a score differs by up to {_points(spreads[most])} ({most}).")
    return found


def _reach(table: dict[str, Any], groups: Sequence[str]) -> list[str]:
    found, n = [], table["n"]
    gap, effect = smallest_gap(n, alpha=table["alpha"]), table["minimum_detectable_effect"]
    if len(table["candidates"]) > 1:
        if gap is not None:
            found.append(f"{n:,} questions can never tell a gap below {_points(gap)} (exact McNemar).")
        else:
            found.append(f"{n:,} questions can tell nothing apart (exact McNemar).")
        if effect is not None:
            found.append(
                f"With {_percent(table['discordance'])} of questions answered differently, a true gap of "
                f"{_points(effect)} is found in 80% of exams."
            )
    named = {group for group in groups if group}
    if len(named) > 1:
        found.append(f"Questions come in {len(named):,} groups: intervals draw, and tests flip, whole groups.")
    return found


def _baselines(table: dict[str, Any]) -> list[str]:
    found = []
    least = above_chance(table["n"], table["chance"], table["alpha"])
    rows = [(row["name"], row["scores"]["accuracy"]) for row in table["candidates"]]
    guessing = [name for name, accuracy in rows if least is None or accuracy["value"] < least]
    if guessing:
        found.append(f"Not above guessing ({_percent(table['chance'])}): {_names(guessing)}.")
    one_place = [name for name, accuracy in rows if accuracy["ci"][0] <= table["majority"] and name not in guessing]
    if one_place:
        found.append(f"Not above always choosing one place ({_percent(table['majority'])}): {_names(one_place)}.")
    return found


def _reservations(
    table: dict[str, Any], exam: ExamRecord, groups: Sequence[str], records: Sequence[SatRecord]
) -> list[str]:
    found = []
    if len(set(groups)) == 1 and groups[0]:
        found.append("All questions are of one group: nothing is said of other groups.")
    if exam.overlap:
        found.append(_without_overlap(table, exam))
    normalization = exam.settings.get("normalization", "none")
    if normalization != "none":
        found.append(
            f"Option probabilities are of log-likelihoods per {normalization[:-1]}, so log-loss is no loss in nats."
        )
    idle = [record.name for record in records if record.same_as_base]
    if idle:
        found.append(f"Moves no answer's log-likelihood, as if it were not there: {_names(idle)}.")
    unparsed = {row["name"]: row["scores"].get("unparsed", {"value": 0.0})["value"] for row in table["candidates"]}
    silent = [f"{name} {_percent(share)}" for name, share in unparsed.items() if share > 0]
    if silent:
        found.append(f"Wrote what names no option, and was marked wrong: {_names(silent)}.")
    return found


def _without_overlap(table: dict[str, Any], exam: ExamRecord) -> str:
    line = f"Training touches {len(exam.overlap):,} of {table['n']:,} questions; "
    picked = table["chosen"] or table["best"]
    clean = next(row["scores"].get("clean.accuracy") for row in table["candidates"] if row["name"] == picked)
    if clean is None:
        return line + "no score is free of them."
    ends = f"{_percent(clean['ci'][0])} to {_percent(clean['ci'][1])}"
    return line + f"without them {picked} has {_percent(clean['value'])} right ({ends}; clean.accuracy)."


def _names(names: Sequence[str]) -> str:
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _points(gap: float) -> str:
    return f"{100 * gap:.1f} points"
