"""Paired statistics of runs on the same items: which can be told apart, and how many more items would be needed.

Every pair of runs is held against one another; of more than two runs all pairs are tested together (max-T). Runs that
no pair tells apart share a letter. The statistics themselves are in `luthier.outcome.statistics`.

A difference is second run minus first throughout: what changes on the way from one to the other. Shapes: K runs,
N items.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from luthier.assess.metrics import Bools, Floats, Ints, auroc, bootstrap_ci
from luthier.outcome.comparing.items import Matched, Measure
from luthier.outcome.comparing.runrecords import Json
from luthier.outcome.statistics import (
    accuracy_interval,
    all_pairs,
    paired_accuracy,
    paired_difference,
    paired_t,
    questions_needed,
    significance_groups,
)
from luthier.outcome.statistics.clusters import bootstrap_weights, cluster_ids

ALPHA = 0.05
_Z = 1.959964 + 0.841621
"""Standard errors that a difference must be away from 0 for 80 % power at a two-sided 5 %."""
_WIDTH = 2 * 1.959964
"""The length of a 95 % interval in standard errors."""


@dataclass(frozen=True)
class Drawing:
    """How intervals and tests are drawn, and which runs are of one recipe."""

    resamples: int = 2000
    seed: int = 17
    recipes: Mapping[str, int] = field(default_factory=dict)
    """Run -> number of its recipe; runs of one number differ by their seed alone. Empty: nothing is known of it."""

    def one_recipe(self, pair: Json) -> bool:
        known = self.recipes
        return pair["a"] in known and known[pair["a"]] == known.get(pair["b"])


def judge(matched: Matched, drawing: Drawing) -> Json:
    """Every measure of matched items: scores with intervals, all pairs, letters.

    {"n", "groups", "left_out", "notes", "measures": [{"name", "lower_is_better", "runs", "pairs", "letters"}]}; fewer
    than two groups of items bear no measure, which is noted.
    """
    groups, notes = len(set(matched.group_N.tolist())), list(matched.notes)
    enough = len(matched) > 1
    if not enough:
        notes.append(f"{len(matched)} items in common bear no comparison")
    return {
        "n": len(matched),
        "groups": groups,
        "left_out": matched.left_out,
        "notes": notes,
        "measures": [_measure(matched, one, drawing) for one in matched.measures] if enough else [],
    }


def judge_ranking(matched: Matched, p_KN: Floats, passed_N: Floats, drawing: Drawing) -> Json | None:
    """AUROC of matched verdicts. Pairs are told apart by the bootstrap interval of their difference, at Bonferroni's
    level; None where the items are of one class."""
    if len(set(passed_N.tolist())) < 2:
        return None
    value_K = [auroc(p_N, passed_N) or 0.0 for p_N in p_KN]
    drawn_RK = _drawn_areas(p_KN, passed_N, matched.group_N.tolist(), drawing)
    combined = list(combinations(range(len(value_K)), 2))
    runs, pairs = list[Json](), list[Json]()
    for k, name in enumerate(matched.runs):
        runs.append({"run": name, "value": value_K[k], "ci": _middle(drawn_RK[:, k], ALPHA), "n": len(matched)})
    for a, b in combined:
        ci = _middle(drawn_RK[:, b] - drawn_RK[:, a], ALPHA / len(combined))
        value = value_K[b] - value_K[a]
        pairs.append(
            {
                "a": matched.runs[a],
                "b": matched.runs[b],
                "difference": {"value": value, "ci": ci, "n": len(matched)},
                "p": None,
                "p_adjusted": None,
                "apart": not ci[0] <= 0 <= ci[1],
                "more": _more_of_interval(value, ci, len(matched)),
            }
        )
    return _told("AUROC", False, runs, pairs, drawing)


def _drawn_areas(p_KN: Floats, passed_N: Floats, groups: Sequence[str], drawing: Drawing) -> Floats:
    """(R, K): each run's AUROC when whole groups are drawn again, alike for all runs; resamples of one class leave."""
    members = cluster_ids(groups, len(passed_N))
    rank_KN = [np.unique(p_N, return_inverse=True)[1].ravel() for p_N in p_KN]
    found = []
    for weights in bootstrap_weights(int(members.max()) + 1, drawing.resamples, drawing.seed):
        for weight_N in weights[:, members]:
            passes_N, fails_N = weight_N * passed_N, weight_N * (1 - passed_N)
            if passes_N.any() and fails_N.any():
                found.append([_weighted_area(rank_N, passes_N, fails_N) for rank_N in rank_KN])
    return np.array(found)


def _weighted_area(rank_N: Ints, passes_N: Floats, fails_N: Floats) -> float:
    """AUROC of items that count so often as passes and as fails; ties count half."""
    passes, fails = np.bincount(rank_N, weights=passes_N), np.bincount(rank_N, weights=fails_N)
    below = np.cumsum(fails) - fails
    return float((passes * (below + 0.5 * fails)).sum() / (passes.sum() * fails.sum()))


def _middle(drawn_R: Floats, alpha: float) -> list[float]:
    """The percentile interval that leaves out a share of `alpha`."""
    return [float(end) for end in np.quantile(drawn_R, [alpha / 2, 1 - alpha / 2])]


def _measure(matched: Matched, measure: Measure, drawing: Drawing) -> Json:
    groups = matched.group_N.tolist()
    weight_N = np.ones(len(matched)) if measure.weight_N is None else measure.weight_N
    part_KN = measure.value_KN * (weight_N / weight_N.mean())  # of which the plain mean is the weighted one
    runs = [
        {"run": name, **_score(measure.exact, value_N, weight_N, groups, drawing)}
        for name, value_N in zip(matched.runs, measure.value_KN, strict=True)
    ]
    pairs = []
    for a, b in combinations(range(len(matched.runs)), 2):
        found = _pair(measure.exact, part_KN[a], part_KN[b], groups, drawing)
        pairs.append({"a": matched.runs[a], "b": matched.runs[b], **found, "p_adjusted": found["p"]})
    if len(matched.runs) > 2:
        tests = all_pairs(part_KN, groups, resamples=drawing.resamples, seed=drawing.seed)
        for pair, (a, b) in zip(pairs, combinations(range(len(matched.runs)), 2), strict=True):
            pair["p_adjusted"] = float(tests.p_KK[a, b])
    for pair in pairs:
        pair["apart"] = pair["p_adjusted"] < ALPHA
        pair["more"] = None if pair["apart"] else _more(pair, len(matched))
    return _told(measure.name, measure.lower_is_better, runs, pairs, drawing)


def _score(exact: bool, value_N: Floats, weight_N: Floats, groups: Sequence[str], drawing: Drawing) -> Json:
    if exact:
        return {**accuracy_interval(value_N, groups, resamples=drawing.resamples, seed=drawing.seed)}
    ci = bootstrap_ci(
        lambda index: float(np.average(value_N[index], weights=weight_N[index])),
        groups,
        resamples=drawing.resamples,
        seed=drawing.seed,
    )
    return {"value": float(np.average(value_N, weights=weight_N)), "ci": ci and list(ci), "n": len(value_N)}


def _pair(exact: bool, a_N: Floats, b_N: Floats, groups: Sequence[str], drawing: Drawing) -> Json:
    """The difference b - a with its interval and p: exact McNemar's where items are right or wrong, else a paired t's.

    `wins` are items that b alone has right.
    """
    drawn = {"resamples": drawing.resamples, "seed": drawing.seed}
    if exact:
        found = paired_accuracy(b_N, a_N, groups, **drawn)
        counts = {key: found[key] for key in ("wins", "losses", "p")}  # type: ignore[literal-required]
        return {"difference": {key: found[key] for key in ("value", "ci", "n")}, **counts}  # type: ignore[literal-required]
    return {"difference": {**paired_difference(b_N, a_N, groups, **drawn)}, "p": paired_t(b_N, a_N, groups)["p"]}


def _more(pair: Json, n: int) -> int | None:
    """Items beside the n that would tell a pair apart with 80 % power; None where nothing differs."""
    if "wins" not in pair:
        return _more_of_interval(pair["difference"]["value"], pair["difference"]["ci"], n)
    gap = abs(pair["wins"] - pair["losses"]) / n
    if not gap:
        return None
    return max(1, questions_needed(gap, (pair["wins"] + pair["losses"]) / n) - n)


def _more_of_interval(value: float, ci: Sequence[float], n: int) -> int | None:
    """The same from the standard error that a 95 % interval shows; None where it does not hold 0."""
    if value == 0.0 or not ci[0] <= 0 <= ci[1]:
        return None
    return max(1, math.ceil(n * (_Z * (ci[1] - ci[0]) / _WIDTH / abs(value)) ** 2) - n)


def _told(name: str, lower: bool, runs: list[Json], pairs: list[Json], drawing: Drawing) -> Json:
    """A measure's record, with a sentence a pair, and letters that runs share which cannot be told apart.

    A test over items takes two models as they are. What tells recipes apart must also exceed what seeds of one recipe
    differ by, where the comparison has such runs.
    """
    place = {run["run"]: k for k, run in enumerate(runs)}
    seeds = [abs(pair["difference"]["value"]) for pair in pairs if drawing.one_recipe(pair)]
    different_KK: Bools = np.zeros((len(place), len(place)), dtype=np.bool_)
    for pair in pairs:
        pair["same_recipe"], pair["models_differ"] = drawing.one_recipe(pair), pair["apart"]
        beyond = not seeds or abs(pair["difference"]["value"]) > max(seeds)
        pair["apart"] = pair["apart"] and beyond and not pair["same_recipe"]
        pair["verdict"] = _sentence(name, lower, pair, max(seeds, default=0.0))
        a, b = place[pair["a"]], place[pair["b"]]
        different_KK[a, b] = different_KK[b, a] = pair["apart"]
    mean_K = np.array([run["value"] for run in runs])
    letters = significance_groups(different_KK, -mean_K if lower else mean_K)
    return {
        "name": name,
        "lower_is_better": lower,
        "runs": runs,
        "pairs": pairs,
        "letters": dict(zip(place, letters, strict=True)),
    }


def _sentence(name: str, lower: bool, pair: Json, seeds: float) -> str:
    gap = abs(pair["difference"]["value"])
    if pair["apart"]:
        better, worse = (pair["b"], pair["a"]) if (pair["difference"]["value"] < 0) == lower else (pair["a"], pair["b"])
        return f"{better} is better than {worse} by {gap:.3f} in {name}."
    said = f"{pair['a']} and {pair['b']} cannot be told apart in {name}"
    if pair["models_differ"] and pair["same_recipe"]:
        return f"{said}: they are of one recipe, and the {gap:.3f} between these two models is chance in training."
    if pair["models_differ"]:
        return f"{said}: their {gap:.3f} is not more than the {seeds:.3f} between runs of one recipe."
    if pair["more"] is None:
        return f"{said}."
    more = round(pair["more"], -max(0, len(str(pair["more"])) - 2))
    return f"{said}: about {more:,} more items would be needed, were the difference as seen."
