"""Many candidates on the same items: tests that hold for all comparisons at once, and groups in place of ranks.

The winner of 22 equal checkpoints looks 2.5 to 6 points too good on 162 questions, and a naive test of best against
first then errs in 10 to 18 % of sweeps. The max-T test takes the largest of all comparisons as its yardstick and keeps
their correlation, so it loses less power than dividing alpha does. Shape suffixes: K candidates, N items, G clusters,
P pairs, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from luthier.assess.metrics import Bools, Floats, Ints
from luthier.errors import DataError
from luthier.outcome.statistics.clusters import (
    bootstrap_means,
    cluster_ids,
    cluster_sums,
    design_effects,
    random_signs,
)
from luthier.outcome.statistics.intervals import wilson_of_z

_HAIR = 1e-9


@dataclass(frozen=True)
class PairTests:
    """Every pair of K candidates, tested together."""

    p_KK: Floats
    """Adjusted two-sided p of each pair; symmetric, 1 on the diagonal."""
    single_alpha: float
    """The level of one test alone that gives the asked-for level over all pairs: for planning."""


def max_t(
    scores_KN: Floats, reference: int, groups: Sequence[str] | None = None, *, resamples: int = 2000, seed: int = 0
) -> Floats:
    """(K,) adjusted two-sided p of each candidate against a reference named beforehand; 1 for the reference itself.

    Sign-flip max-T, step-down (Westfall & Young 1993; Romano & Wolf 2005). Under no difference a cluster's scores of
    both sides may be exchanged; one flip is shared by all comparisons. A comparison is scaled by the root of its summed
    squares, which flips leave as it is; one without any differing item has p = 1. For a reference picked by its score
    use `all_pairs`.
    """
    others = np.array([k for k in range(len(scores_KN)) if k != reference], dtype=np.int64)
    adjusted_K = np.ones(len(scores_KN))
    if len(others):
        against = np.full(len(others), reference)
        adjusted_K[others] = _flip_test(scores_KN, groups, (others, against), resamples, seed)[0]
    return adjusted_K


def all_pairs(
    scores_KN: Floats, groups: Sequence[str] | None = None, *, alpha: float = 0.05, resamples: int = 2000, seed: int = 0
) -> PairTests:
    """The max-T test of `max_t` over all K(K-1)/2 pairs: whichever pair the data points at, the level holds.

    That covers the comparison of any candidate with the best: the best is one of them, chosen by the same scores, and
    its pairs are among those whose largest is the yardstick (as in Tukey's range test).
    """
    count = len(scores_KN)
    first, second = np.triu_indices(count, 1)
    p_KK = np.ones((count, count))
    if count < 2:
        return PairTests(p_KK, alpha)
    p_P, largest_R = _flip_test(scores_KN, groups, (first, second), resamples, seed)
    p_KK[first, second] = p_KK[second, first] = p_P
    from scipy.stats import norm

    critical = float(np.quantile(largest_R, 1 - alpha))
    return PairTests(p_KK, min(alpha, 2 * float(norm.sf(critical))))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p of unrelated tests (Holm 1979): valid whatever their dependence, with less power than max-T."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.minimum(1.0, np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p)))))
    return [float(value) for value in stepped[np.argsort(order)]]


def simultaneous_band(
    scores_KN: Floats,
    groups: Sequence[str] | None = None,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Floats:
    """(K, 2): a band that holds all K true accuracies at once with probability `level`; scores are 0 or 1.

    The critical value is the quantile of the largest studentised deviation under the (cluster) bootstrap (sup-t:
    Montiel Olea & Plagborg-Møller 2019); it takes the place of z in Wilson's interval, whose n is the effective one.
    """
    members = cluster_ids(groups, scores_KN.shape[1])
    n, mean_K = scores_KN.shape[1], scores_KN.mean(axis=1)
    effective_K = n / design_effects(scores_KN, members)
    error_K = np.sqrt(mean_K * (1 - mean_K) / effective_K)
    moved = error_K > 0
    from scipy.stats import norm

    critical = float(norm.isf((1 - level) / 2))
    if moved.any():
        means_RK = bootstrap_means(scores_KN[moved], members, resamples=resamples, seed=seed)
        deviations_RK = np.abs(means_RK - mean_K[moved]) / error_K[moved]
        critical = max(critical, float(np.quantile(deviations_RK.max(axis=1), level)))
    return np.array([wilson_of_z(float(p), float(n), critical) for p, n in zip(mean_K, effective_K, strict=True)])


def significance_groups(different_KK: Bools, scores_K: Floats) -> list[list[str]]:
    """Letters of each candidate: two that share one cannot be told apart, two that share none can.

    The compact letter display of Piepho 2004 (insert and absorb); "a" goes to the group with the highest score.
    `different_KK` says which pairs were told apart.
    """
    columns: list[frozenset[int]] = [frozenset(range(len(scores_K)))]
    for first, second in np.argwhere(np.triu(different_KK, 1)):
        split: set[frozenset[int]] = set()
        for column in columns:
            both = first in column and second in column
            split |= {column - {int(first)}, column - {int(second)}} if both else {column}
        columns = [column for column in split if not any(column < other for other in split)]
    columns.sort(key=lambda column: sorted((-float(scores_K[k]), k) for k in column))
    return [[_letter(place) for place, column in enumerate(columns) if k in column] for k in range(len(scores_K))]


def _letter(place: int) -> str:
    """a to z, then aa, ab, ..."""
    ahead, last = divmod(place, 26)
    return (_letter(ahead - 1) if ahead else "") + chr(ord("a") + last)


def _flip_test(
    scores_KN: Floats, groups: Sequence[str] | None, pairs: tuple[Ints, Ints], resamples: int, seed: int
) -> tuple[Floats, Floats]:
    """Step-down adjusted p (P,) of the pairs, and the largest statistic of each flip (R,)."""
    scores_KN = np.asarray(scores_KN, dtype=np.float64)
    if not np.isfinite(scores_KN).all():
        raise DataError("a score is not a number", "give every candidate a finite score on every item")
    sums_KG = cluster_sums(scores_KN, cluster_ids(groups, scores_KN.shape[1]))
    difference_PG = sums_KG[pairs[0]] - sums_KG[pairs[1]]
    difference_PG = difference_PG[:, (difference_PG != 0).any(axis=0)]
    scale_P = np.sqrt((difference_PG**2).sum(axis=1))
    difference_PG /= np.where(scale_P > 0, scale_P, 1.0)[:, None]
    seen_P = np.abs(difference_PG.sum(axis=1))
    order = np.argsort(-seen_P, kind="stable")
    above_P, largest = np.zeros(len(order)), []
    for signs in random_signs(max(1, difference_PG.shape[1]), resamples, seed):
        flipped_RP = np.abs(signs[:, : difference_PG.shape[1]] @ difference_PG.T)[:, order]
        running_RP = np.maximum.accumulate(flipped_RP[:, ::-1], axis=1)[:, ::-1]
        above_P += (running_RP >= seen_P[order] - _HAIR).sum(axis=0)
        largest.append(running_RP[:, 0])
    p_P = np.empty(len(order))
    p_P[order] = np.maximum.accumulate((1 + above_P) / (1 + resamples))
    return p_P, np.concatenate(largest)
