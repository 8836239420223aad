"""Two candidates on the same items: what their difference is, and whether these items can show it.

A difference is first minus second throughout; a win is an item that only the first has right. Shape suffix: N items.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from luthier.assess.metrics import Floats
from luthier.errors import DataError
from luthier.outcome.statistics.clusters import Estimate, cluster_count, cluster_ids, cluster_sums
from luthier.outcome.statistics.intervals import mean_interval
from luthier.outcome.statistics.many import max_t


class AccuracyPair(TypedDict):
    """Difference of two accuracies; `p` belongs to this one comparison, uncorrected for others."""

    value: float
    ci: list[float]
    n: int
    wins: int
    losses: int
    p: float


class MeanPair(TypedDict):
    """Difference of two means, with the t-test of no difference."""

    value: float
    ci: list[float]
    n: int
    p: float


def mcnemar_exact(wins: int, losses: int) -> float:
    """Two-sided p of `wins` against `losses` being a fair coin's (McNemar 1947, exact binomial); 1 for none of both."""
    from scipy.stats import binom

    return min(1.0, 2.0 * float(binom.cdf(min(wins, losses), wins + losses, 0.5)))


def paired_difference(
    a_N: Floats,
    b_N: Floats,
    groups: Sequence[str] | None = None,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Mean of a - b on the same items, with the percentile interval of the paired (cluster) bootstrap.

    Efron & Tibshirani 1993, "An Introduction to the Bootstrap", ch. 13; whole groups drawn as in Field & Welsh 2007.
    """
    return mean_interval(_differences(a_N, b_N), groups, level=level, resamples=resamples, seed=seed)


def paired_accuracy(
    a_N: Floats,
    b_N: Floats,
    groups: Sequence[str] | None = None,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> AccuracyPair:
    """Difference of two accuracies on the same items (0 or 1 each).

    Items on their own: exact McNemar and the adjusted Wald interval of Bonett & Price 2012, which stays honest where
    few or no items differ (a bootstrap then gives no width). Items in groups: whole groups are flipped (many.max_t)
    and drawn; where nothing differs, Bonett & Price over the groups.
    """
    difference = _differences(a_N, b_N)
    members = cluster_ids(groups, len(difference))
    count, grouped = cluster_count(members), cluster_count(members) < len(difference)
    wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
    if grouped and wins + losses:
        ci = paired_difference(a_N, b_N, groups, level=level, resamples=resamples, seed=seed)["ci"]
        p = float(max_t(np.stack([a_N, b_N]), 1, groups, resamples=resamples, seed=seed)[0])
    else:
        ci, p = _bonett_price(wins, losses, count, level), mcnemar_exact(wins, losses)
    value = float(difference.mean())
    return {"value": value, "ci": ci, "n": len(difference), "wins": wins, "losses": losses, "p": p}


def paired_t(a_N: Floats, b_N: Floats, groups: Sequence[str] | None = None, *, level: float = 0.95) -> MeanPair:
    """Paired t-test of two means on the same items (Student 1908), cluster-robust where items come in groups.

    The robust variance is CR1 of a regression on a constant (Liang & Zeger 1986; Cameron & Miller 2015), with
    clusters - 1 degrees of freedom. On option log-losses it sees more than accuracy does from the same questions.
    """
    from scipy.stats import t as student

    difference = _differences(a_N, b_N)
    members = cluster_ids(groups, len(difference))
    count, value = cluster_count(members), float(difference.mean())
    if count < 2:
        raise DataError("one item bears no t-test", "give two or more")
    rest_G = cluster_sums((difference - value)[None], members)[0]
    n = len(difference)
    error = float(np.sqrt(count / (count - 1) * (rest_G**2).sum())) / n
    half = float(student.isf((1 - level) / 2, count - 1)) * error
    t = abs(value) / error if error > 0 else (math.inf if value else 0.0)
    p = 2.0 * float(student.sf(t, count - 1))
    return {"value": value, "ci": [value - half, value + half], "n": n, "p": p}


def _differences(a_N: Floats, b_N: Floats) -> Floats:
    if len(a_N) != len(b_N) or len(a_N) == 0:
        raise DataError(f"{len(a_N)} items against {len(b_N)}", "compare two candidates on the same items")
    return np.asarray(a_N, dtype=np.float64) - np.asarray(b_N, dtype=np.float64)


def _bonett_price(wins: int, losses: int, n: int, level: float) -> list[float]:
    """One win and one loss are added to the counts before the plain Wald interval."""
    from scipy.stats import norm

    first, second = (wins + 1) / (n + 2), (losses + 1) / (n + 2)
    half = float(norm.isf((1 - level) / 2)) * float(np.sqrt((first + second - (first - second) ** 2) / (n + 2)))
    return [max(-1.0, first - second - half), min(1.0, first - second + half)]
