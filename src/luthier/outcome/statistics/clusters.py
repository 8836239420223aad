"""Which items stand or fall together, and how they are drawn again.

Items of one group (a page, a passage, a speaker) are one observation: intervals draw whole groups, tests flip whole
groups. The module refuses to know what a score means. Shape suffixes: N items, G clusters, M or K rows of scores,
R resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypedDict

import numpy as np

from luthier.assess.metrics import Floats, Ints
from luthier.errors import DataError, RequestError

_CHUNK_BYTES = 2**24


class Estimate(TypedDict):
    """A figure with its interval and the number of items behind it."""

    value: float
    ci: list[float]
    n: int


def cluster_ids(groups: Sequence[str] | None, n: int) -> Ints:
    """The cluster of each of `n` items, numbered from 0. An item whose group is "" is a cluster of its own.

    A single group that holds every item says nothing of other groups: its items are then taken one by one, and what
    follows holds for that group alone.
    """
    if n < 1 or (groups is not None and len(groups) != n):
        raise DataError(
            f"{0 if groups is None else len(groups)} groups for {n} items", "give some items, and one group for each"
        )
    if groups is None or len(set(groups)) == 1:
        return np.arange(n)
    named = [group or f"\0{place}" for place, group in enumerate(groups)]
    return np.unique(np.asarray(named), return_inverse=True)[1].ravel().astype(np.int64)


def cluster_count(members_N: Ints) -> int:
    """How many clusters there are; as many as items where nothing is grouped."""
    return int(members_N.max()) + 1


def cluster_sums(scores_MN: Floats, members_N: Ints) -> Floats:
    """(M, G): each row's scores added up by cluster."""
    count = cluster_count(members_N)
    return np.stack([np.bincount(members_N, weights=row, minlength=count) for row in scores_MN])


def design_effects(values_MN: Floats, members_N: Ints) -> Floats:
    """(M,): how many times the variance of a mean grows because items come in groups; at least 1 (Kish 1965).

    n / design effect is the number of independent items that the groups are worth. A row without spread shows no
    likeness within groups: it counts as wholly alike, one item a group.
    """
    n, count = values_MN.shape[1], cluster_count(members_N)
    rest_MN = values_MN - values_MN.mean(axis=1, keepdims=True)
    alone_M = (rest_MN**2).sum(axis=1)
    together_M = (cluster_sums(rest_MN, members_N) ** 2).sum(axis=1)
    spread = alone_M > 1e-12 * n
    found_M: Floats = np.where(spread, np.maximum(1.0, together_M / np.where(spread, alone_M, 1.0)), n / count)
    return found_M


def bootstrap_weights(count: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each of `count` clusters is drawn: `resamples` rows in all, in blocks (r, G) that fit a cache."""
    for rows, generator in _blocks(count, resamples, seed):
        drawn = generator.integers(count, size=(rows, count)) + np.arange(rows)[:, None] * count
        yield np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)


def random_signs(count: int, resamples: int, seed: int) -> Iterator[Floats]:
    """+1 or -1 for each of `count` clusters: `resamples` rows in all, in blocks (r, G)."""
    for rows, generator in _blocks(count, resamples, seed):
        yield generator.integers(2, size=(rows, count), dtype=np.int8).astype(np.float64) * 2 - 1


def bootstrap_means(scores_MN: Floats, members_N: Ints, *, resamples: int, seed: int) -> Floats:
    """(R, M): the mean of each row when whole clusters are drawn again (Field & Welsh 2007), alike for all rows."""
    sums_MG, sizes_G = cluster_sums(scores_MN, members_N), np.bincount(members_N)
    blocks = bootstrap_weights(len(sizes_G), resamples, seed)
    return np.concatenate([(weights @ sums_MG.T) / (weights @ sizes_G)[:, None] for weights in blocks])


def _blocks(count: int, resamples: int, seed: int) -> Iterator[tuple[int, np.random.Generator]]:
    if resamples < 1:
        raise RequestError(f"{resamples} resamples bear no interval and no test", "ask for at least 1")
    generator = np.random.default_rng(seed)
    size = max(1, _CHUNK_BYTES // (8 * count))
    for start in range(0, resamples, size):
        yield min(size, resamples - start), generator
