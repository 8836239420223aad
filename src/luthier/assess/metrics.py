"""Scores of probabilities that an answer passes, each with an interval that respects the groups.

Arrays are flat: `p` (n,) is P(pass), `y` (n,) the label, hard (0 or 1) or soft (anything between). For
accuracy, auroc and log_loss a soft label is two copies of its item, a pass of weight y and a fail of weight
1 - y. Everything is on P(pass), never on a pair of answer and confidence. The module refuses to know models,
files and how the predictions came about.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from luthier.assess.targets import event_truth
from luthier.errors import DataError, RequestError

if TYPE_CHECKING:
    from luthier.recipe import Scale

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Statistic = Callable[[Ints], "float | None"]

_CLIP = 1e-7
_HAIR = 1e-9


def accuracy(p: Floats, y: Floats) -> float:
    """Share of items whose answer, pass when p > 1/2, is the label's; a soft label agrees by its share."""
    return float(np.where(p > 0.5, y, 1.0 - y).mean())


def auroc(p: Floats, y: Floats) -> float | None:
    """Chance that a random pass is ranked over a random fail, ties counting half (Hanley & McNeil 1982).

    sum_ij y_i (1 - y_j) [p_i > p_j, 1/2 if equal] / (sum y · sum (1 - y)). None when one class has no weight.
    """
    return _auroc_of_ranks(_ranks(p), y)


def log_loss(p: Floats, y: Floats) -> float:
    """Mean of -(y ln p + (1 - y) ln(1 - p)) in nats, p clipped to 1e-7 .. 1 - 1e-7."""
    return float(_log_losses(p, y).mean())


def brier(p: Floats, y: Floats) -> float:
    """Mean of (p - y)² (Brier 1950); 0 for a forecast equal to its labels, hard or soft."""
    return float(((p - y) ** 2).mean())


def ece(p: Floats, y: Floats, bins: int = 10) -> float:
    """Expected calibration error in equal-mass bins: sum_b n_b / n · |mean p - mean y|.

    Nguyen & O'Connor 2015, "Posterior calibration and exploratory analysis".

    Equal p share a bin, whatever the order of the items. It is never negative, so noise alone lifts it, and
    a resample is noisier than the sample: read its interval as an upper hint.
    """
    return _ece_of_ranks(_ranks(p), p, y, bins)


def ece_of_index(p: Floats, y: Floats, bins: int = 10) -> Statistic:
    """`ece` of p[index] and y[index] as a function of the index, for resamples: p is ranked once."""
    ranks = _ranks(p)
    return lambda index: _ece_of_ranks(ranks[index], p[index], y[index], bins)


def grade_means(p: Floats, grade: Floats) -> dict[str, dict[str, float | int]]:
    """Mean p and count per grade, the grade written as in "3.5"; lowest grade first."""
    return {
        f"{value:.10g}": {"mean_p": float(p[grade == value].mean()), "n": int((grade == value).sum())}
        for value in np.unique(grade)
    }


def bootstrap_ci(
    statistic: Statistic,
    groups: Sequence[str] | npt.NDArray[np.str_],
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float] | None:
    """Percentile interval of `statistic(indices)` when whole groups are drawn again (Field & Welsh 2007).

    A resample on which the statistic is None is passed over; None when that is all of them. A single group
    says nothing of other groups: its items are drawn instead, and the interval holds for that group alone.
    """
    if resamples < 1 or not 0.0 < level < 1.0 or len(groups) == 0:
        raise RequestError(
            f"no interval from {resamples} resamples of {len(groups)} items at level {level}",
            "ask for at least 1 resample, a level between 0 and 1, and some items",
        )
    members = np.unique(np.asarray(groups), return_inverse=True)[1].ravel()
    if members.max() == 0:
        members = np.arange(len(groups))
    order, counts = np.argsort(members, kind="stable"), np.bincount(members)
    starts = np.cumsum(counts) - counts
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        drawn = generator.integers(len(counts), size=len(counts))
        sizes = counts[drawn]
        # position of every drawn item in `order`: its group's start plus its place in the group
        shift = np.repeat(starts[drawn] - (np.cumsum(sizes) - sizes), sizes)
        value = statistic(order[shift + np.arange(len(shift))])
        if value is not None:
            found.append(value)
    if not found:
        return None
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass
class VerdictItems:
    """Verdicts on n answers, column by column.

    `held_back` are grades by raters the model never saw; `event` is what `p_pass` is the probability of
    (see targets). An item that is not `readable` has no verdict and counts as wrong; empty: all are.
    """

    id: list[str]
    group: list[str]
    grade: list[float]
    p_pass: list[float]
    held_back: list[tuple[float, ...]] = field(default_factory=list)
    event: str = "rater"
    readable: list[bool] = field(default_factory=list)


@dataclass
class ScoreColumns:
    """What the scores are made of, all (n,): P(pass), label 0/1, soft truth, and who takes part in what.

    `side` is the side of the held-back majority: 1 pass, 0 fail, NaN where there is none.
    """

    p: Floats
    passed: Floats
    truth: Floats
    group: npt.NDArray[np.str_]
    borderline: Bools
    readable: Bools
    side: Floats


def verdict_scores(items: VerdictItems, scale: Scale, *, seed: int = 0, resamples: int = 1000) -> dict[str, Any]:
    """Every score as {"value", "ci": [low, high], "n"}, plus "grades": {"3.5": {"mean_p", "n"}}.

    accuracy, auroc, borderline.*: the answer p > 1/2, or p, against grade >= pass mark. log_loss, brier, ece:
    p against the truth of the items' event. borderline: grades at the mark and one step under it. closer: of
    the grades one step under, with held-back raters who are not evenly split, the share put on the side of
    their majority. A score that cannot be computed (one class, no such items) is left out. Raises DataError
    on bad columns.
    """
    columns = _columns(items, scale)
    scores = column_scores(columns, seed=seed, resamples=resamples)
    return {**scores, "grades": grade_means(columns.p, np.asarray(items.grade, dtype=np.float64))}


def column_scores(columns: ScoreColumns, *, seed: int = 0, resamples: int = 1000) -> dict[str, Any]:
    """The scores of `verdict_scores` from columns made elsewhere, without the means by grade."""
    p, passed, truth = columns.p, columns.passed, columns.truth
    ranks = _ranks(p)
    hits = np.where(columns.readable, (p > 0.5) == (passed == 1.0), False).astype(np.float64)
    losses, squares = _log_losses(p, truth), (p - truth) ** 2
    closer = np.where(columns.readable, (p > 0.5) == (columns.side == 1.0), False).astype(np.float64)
    everyone = np.ones(len(p), dtype=np.bool_)

    def area(index: Ints) -> float | None:
        return _auroc_of_ranks(ranks[index], passed[index])

    plan: list[tuple[str, Bools, Statistic]] = [
        ("accuracy", everyone, lambda index: float(hits[index].mean())),
        ("auroc", everyone, area),
        ("log_loss", everyone, lambda index: float(losses[index].mean())),
        ("brier", everyone, lambda index: float(squares[index].mean())),
        ("ece", everyone, ece_of_index(p, truth)),
        ("borderline.accuracy", columns.borderline, lambda index: float(hits[index].mean())),
        ("borderline.auroc", columns.borderline, area),
        ("closer", ~np.isnan(columns.side), lambda index: float(closer[index].mean())),
    ]
    found = {
        name: score(statistic, who, columns.group, seed=seed, resamples=resamples) for name, who, statistic in plan
    }
    return {name: value for name, value in found.items() if value is not None}


def score(
    statistic: Statistic, who: Bools, groups: npt.NDArray[np.str_], *, seed: int, resamples: int
) -> dict[str, Any] | None:
    """{"value", "ci", "n"} of `statistic` over the items of the mask `who` (n,); None without a value."""
    index = np.flatnonzero(who)
    value = statistic(index) if len(index) else None
    if value is None:
        return None
    interval = bootstrap_ci(lambda drawn: statistic(index[drawn]), groups[index], resamples=resamples, seed=seed)
    return None if interval is None else {"value": value, "ci": list(interval), "n": len(index)}


def majority_side(raters: tuple[float, ...], scale: Scale) -> float:
    """1 when most raters reach the pass mark, 0 when most do not, NaN on a tie and without raters."""
    lead = sum(1 if grade >= scale.pass_mark - _HAIR else -1 for grade in raters)
    return math.nan if lead == 0 else float(lead > 0)


def _columns(items: VerdictItems, scale: Scale) -> ScoreColumns:
    n = len(items.id)
    sizes = {
        len(items.group),
        len(items.grade),
        len(items.p_pass),
        len(items.held_back or items.id),
        len(items.readable or items.id),
    }
    if n == 0 or sizes != {n}:
        raise DataError(
            f"{n} items with columns of {sorted(sizes)} values", "give one value per item, and at least one item"
        )
    twice = [name for name, count in Counter(items.id).items() if count > 1]
    if twice:
        raise DataError(f"{len(twice)} ids occur more than once, first {twice[0]!r}", "give one verdict per item")
    p = np.asarray(items.p_pass, dtype=np.float64)
    grade = np.asarray(items.grade, dtype=np.float64)
    if not (np.isfinite(grade).all() and ((p >= 0) & (p <= 1)).all()):
        raise DataError("a grade is not a number, or a P(pass) lies outside 0..1", "correct the predictions")
    under = np.abs(grade - (scale.pass_mark - scale.step)) < _HAIR
    side = np.array([majority_side(raters, scale) for raters in items.held_back] or [math.nan] * n)
    return ScoreColumns(
        p=p,
        passed=(grade >= scale.pass_mark - _HAIR).astype(np.float64),
        truth=np.array([event_truth(items.event, value, scale) for value in grade]),
        group=np.asarray(items.group, dtype=np.str_),
        borderline=under | (np.abs(grade - scale.pass_mark) < _HAIR),
        readable=np.asarray(items.readable or [True] * n, dtype=np.bool_),
        side=np.where(under, side, math.nan),
    )


def _log_losses(p: Floats, y: Floats) -> Floats:
    clipped = np.clip(p, _CLIP, 1.0 - _CLIP)
    return np.asarray(-(y * np.log(clipped) + (1.0 - y) * np.log1p(-clipped)), dtype=np.float64)


def _ranks(p: Floats) -> Ints:
    """Dense ranks from 0, equal values sharing one: found once, so that a resample needs no sorting."""
    return np.unique(p, return_inverse=True)[1].ravel().astype(np.int64)


def _auroc_of_ranks(ranks: Ints, y: Floats) -> float | None:
    passes, fails = np.bincount(ranks, weights=y), np.bincount(ranks, weights=1.0 - y)
    total = passes.sum() * fails.sum()
    below = np.cumsum(fails) - fails
    return float((passes * (below + 0.5 * fails)).sum() / total) if total > 0 else None


def _ece_of_ranks(ranks: Ints, p: Floats, y: Floats, bins: int) -> float:
    counts = np.bincount(ranks)
    # the bin of a rank is where the middle of its tied items falls among n / bins sized shares
    middle = np.cumsum(counts) - counts / 2.0
    bin_of = np.minimum((middle * bins / len(ranks)).astype(np.int64), bins - 1)
    gaps = np.bincount(bin_of[ranks], weights=p - y, minlength=bins)
    return float(np.abs(gaps).sum() / len(ranks))
