"""Choosing one of many candidates, and what the chosen one's score is worth after the choice.

Shape suffixes: K candidates, N items, G clusters, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from luthier.assess.metrics import Floats
from luthier.errors import DataError
from luthier.outcome.statistics.clusters import (
    Estimate,
    bootstrap_weights,
    cluster_ids,
    cluster_sums,
    design_effects,
)
from luthier.outcome.statistics.intervals import wilson
from luthier.outcome.statistics.many import all_pairs


def earliest_equal(
    scores_KN: Floats,
    steps: Sequence[int],
    groups: Sequence[str] | None = None,
    *,
    alpha: float = 0.05,
    resamples: int = 2000,
    seed: int = 0,
) -> int:
    """Index of the earliest candidate (by step) that cannot be told from the best.

    The best was picked by these very scores, so a test against it as if it had been named beforehand would call equal
    candidates different too often: the yardstick is the largest of all pairs (`many.all_pairs`). Of candidates with
    equal scores the earliest is the best.
    """
    pairs = all_pairs(scores_KN, groups, resamples=resamples, seed=seed)
    return earliest_of(scores_KN.mean(axis=1), steps, pairs.p_KK, alpha)


def earliest_of(mean_K: Floats, steps: Sequence[int], p_KK: Floats, alpha: float = 0.05) -> int:
    """As `earliest_equal`, from pair tests that were made before."""
    if len(mean_K) == 0 or len(steps) != len(mean_K):
        raise DataError(f"{len(steps)} steps for {len(mean_K)} candidates", "give one step for each")
    order = sorted(range(len(mean_K)), key=lambda k: steps[k])
    best = max(order, key=lambda k: float(mean_K[k]))
    return next(k for k in order if k == best or p_KK[k, best] > alpha)


def selection_corrected(
    scores_KN: Floats,
    groups: Sequence[str] | None = None,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Accuracy that the best of K keeps on items that did not help to choose it (scores 0 or 1, row order breaks ties).

    The leave-one-out bootstrap of Efron & Tibshirani 1997 around the choice: the best is picked on each resample and
    scored on the items left out of it (cf. Tibshirani & Tibshirani 2009). Each item's mean over the resamples without
    it is its score; the interval is Wilson's, over as many items as the groups are worth.
    """
    n = scores_KN.shape[1]
    members = cluster_ids(groups, n)
    sums_KG, sizes_G = cluster_sums(scores_KN, members), np.bincount(members)
    picked_KG = np.zeros_like(sums_KG)
    for weights in bootstrap_weights(len(sizes_G), resamples, seed):
        best_R = (weights @ sums_KG.T).argmax(axis=1)
        picked_KG += (best_R[None] == np.arange(len(sums_KG))[:, None]).astype(np.float64) @ (weights == 0)
    left_out_G = picked_KG.sum(axis=0)
    seen = left_out_G > 0
    if not seen.any():
        raise DataError(f"no item was left out of {resamples} resamples", "ask for more resamples, or give more items")
    seen_N = seen[members]
    kept_N = (picked_KG[:, members] * scores_KN).sum(axis=0)[seen_N] / left_out_G[members][seen_N]
    value = min(1.0, float(kept_N.mean()))
    effective = n / float(design_effects(kept_N[None], np.unique(members[seen_N], return_inverse=True)[1])[0])
    return {"value": value, "ci": list(wilson(value * effective, effective, level)), "n": n}
