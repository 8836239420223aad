"""Intervals of one score: how far an accuracy or a mean may lie from what was counted, and what guessing reaches.

The module refuses to know candidates and files. Shape suffix: N items.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from luthier.assess.metrics import Floats
from luthier.errors import RequestError
from luthier.outcome.statistics.clusters import Estimate, bootstrap_means, cluster_count, cluster_ids


def wilson(right: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Score interval of a share, `right` of `n` (Wilson 1927); both may be fractions, as an effective n is one."""
    from scipy.stats import norm

    if n <= 0 or not 0 <= right <= n or not 0 < level < 1:
        raise RequestError(f"no interval for {right} of {n} at level {level}", "give 0 <= right <= n, 0 < level < 1")
    return wilson_of_z(right / n, n, float(norm.isf((1 - level) / 2)))


def wilson_of_z(share: float, n: float, z: float) -> tuple[float, float]:
    """Wilson's interval for a critical value `z`, such as that of a simultaneous band."""
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def accuracy_interval(
    correct_N: Floats,
    groups: Sequence[str] | None = None,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Share of right answers (0 or 1 each): Wilson's interval, or the cluster bootstrap where items come in groups.

    All right or all wrong leaves a bootstrap nothing to draw from: then Wilson's interval over the groups.
    """
    members = cluster_ids(groups, len(correct_N))
    count, value = cluster_count(members), float(np.mean(correct_N))
    if count == len(correct_N) or value in (0.0, 1.0):
        return {"value": value, "ci": list(wilson(value * count, count, level)), "n": len(correct_N)}
    return mean_interval(correct_N, groups, level=level, resamples=resamples, seed=seed)


def mean_interval(
    values_N: Floats, groups: Sequence[str] | None = None, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """Mean of any value an item has, with the percentile interval of the cluster bootstrap (Field & Welsh 2007)."""
    members = cluster_ids(groups, len(values_N))
    means = bootstrap_means(np.asarray(values_N, dtype=np.float64)[None], members, resamples=resamples, seed=seed)
    low, high = np.quantile(means[:, 0], [(1 - level) / 2, (1 + level) / 2])
    return {"value": float(np.mean(values_N)), "ci": [float(low), float(high)], "n": len(values_N)}


def above_chance(n: int, chance: float = 0.5, alpha: float = 0.05) -> float | None:
    """The lowest accuracy on `n` items that is above guessing: exact binomial test, two-sided; None where none is.

    Clopper & Pearson 1934. Where the number of options varies, `chance` is its mean, which errs on the safe side.
    """
    from scipy.stats import binom

    right = int(binom.isf(alpha / 2, n, chance)) + 1
    return right / n if right <= n else None
