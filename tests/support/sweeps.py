"""Simulated sweeps: candidates that answer the same items, alike as checkpoints of one run are."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import norm

from luthier.assess.metrics import Floats

ALIKE = 0.94
"""Correlation of two candidates' latent scores: about 8 % of items are answered differently at an accuracy of 0.77."""


def simulate_sweep(
    generator: np.random.Generator, accuracy_K: Sequence[float], n: int, *, cluster: int = 1, alike: float = ALIKE
) -> Floats:
    """(K, n) of 0 and 1, with these true accuracies; `cluster` items in a row are of one text.

    In a cluster both what is hard and what a candidate is good at are shared by half.
    """
    count = len(accuracy_K)
    hard = _shared(generator, 1, n, cluster)
    own = _shared(generator, count, n, cluster)
    latent = np.sqrt(alike) * hard + np.sqrt(1 - alike) * own
    return np.asarray(latent < norm.ppf(accuracy_K)[:, None], dtype=np.float64)


def _shared(generator: np.random.Generator, rows: int, n: int, cluster: int) -> Floats:
    if cluster == 1:
        return generator.standard_normal((rows, n))
    text = np.repeat(generator.standard_normal((rows, -(-n // cluster))), cluster, axis=1)[:, :n]
    return np.sqrt(0.5) * text + np.sqrt(0.5) * generator.standard_normal((rows, n))


def clusters(n: int, size: int) -> list[str]:
    """The group of each item where `size` in a row are of one text."""
    return [f"text {place // size}" for place in range(n)]
