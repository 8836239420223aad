"""Evens out the classes of graded rows: drop from the large ones, repeat the small ones, or weigh the loss.

Knows labels and a seed; refuses to know rows, grades and splits: the caller gives the labels of the training split
alone, so that nothing is repeated into another split.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from luthier.console import table
from luthier.data.mix import shuffled
from luthier.errors import DataError

METHODS = ("down", "up", "weights")


@dataclass(frozen=True, eq=False)
class Balanced:
    """Per row, in the order of the labels: whether it stays, how often it comes, and its weight in the loss.

    `repeats` is 0 where `keep` is false; `weights` is 1 but for the method `weights`.
    """

    keep: NDArray[np.bool_]
    repeats: NDArray[np.int32]
    weights: NDArray[np.float64]
    labels: tuple[str, ...]

    def table(self) -> str:
        """Rows of each class before and after, and what share of the loss it has."""
        labels = np.array(self.labels)
        force = self.repeats * self.weights
        total = float(force.sum()) or 1.0
        lines = []
        for name in sorted(set(self.labels)):
            own = labels == name
            share = float(force[own].sum()) / total
            lines.append([name or "(no class)", f"{own.sum():,}", f"{self.repeats[own].sum():,}", f"{share:.2%}"])
        return table(["class", "rows", "after", "share"], lines)


def balance(labels: Sequence[str], method: str, seed: int) -> Balanced:
    """Balance the classes of `labels`; a row whose label is "" stays as it is.

    - down: each class keeps as many rows as the smallest has, drawn by the seed.
    - up: each class comes as often as the largest: every row the same number of times, and the remainder, drawn by
      the seed, once more.
    - weights: n / (k x n_c) for n labelled rows in k classes, which has mean 1 over them.

    Raises DataError for another method, and where fewer than two classes are there.
    """
    if method not in METHODS:
        raise DataError(f"data.balance.method: {method!r} is not a method", f"one of: {', '.join(METHODS)}")
    counts = Counter(label for label in labels if label)
    if len(counts) < 2:
        only = f"all rows are of the class {next(iter(counts))!r}" if counts else "no row has a class"
        raise DataError(
            f"data.balance: {only}", "set data.balance.method to empty, or data.balance.by to another label"
        )
    found = np.array(labels, dtype=object)
    repeats = np.ones(len(labels), dtype=np.int32)
    weights = np.ones(len(labels))
    for name, count in counts.items():
        own = np.flatnonzero(found == name)
        # Drawn by the class's own name: rows of another class never change which of this class are taken.
        drawn = own[shuffled(count, seed, 0, "balance " + hashlib.sha256(name.encode()).hexdigest())]
        if method == "down":
            repeats[drawn[min(counts.values()) :]] = 0
        elif method == "up":
            whole, rest = divmod(max(counts.values()), count)
            repeats[own] = whole
            repeats[drawn[:rest]] += 1
        else:
            weights[own] = counts.total() / (len(counts) * count)
    return Balanced(repeats > 0, repeats, weights, tuple(labels))
