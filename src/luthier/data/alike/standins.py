"""Goes through items in order and finds for each the first kept item that it is like.

Knows numbers of items and a function that compares many at once; refuses to know what they are. Every pair of kept
items has been compared: nothing is sampled, so the same items give the same answer.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Similarity = Callable[[Indices, Indices], NDArray[np.float32]]
"""(rows, others) -> similarities of shape (rows, others)."""

_BLOCK, _SPAN = 256, 8192


@dataclass
class StandIns:
    """`merged` holds (item, the item that stands for it, similarity); `apart` pairs that are alike but kept."""

    merged: list[tuple[int, int, float]] = field(default_factory=list)
    apart: list[tuple[int, int]] = field(default_factory=list)


def stand_ins(
    rows: Indices,
    similarity: Similarity,
    threshold: float,
    is_apart: Callable[[int, int], bool] | None = None,
) -> StandIns:
    """Compare ascending `rows` with the kept ones before them; the work is rows times kept rows.

    `is_apart(first, second)` may keep a pair that is alike. A row is merged into the first row that it is like.
    """
    found = StandIns()
    kept = np.empty(0, dtype=np.int64)
    for at in range(0, len(rows), _BLOCK):
        block = rows[at : at + _BLOCK]
        alike: list[list[tuple[int, float]]] = [[] for _ in range(len(block))]
        for start in range(0, len(kept), _SPAN):
            _note(alike, kept[start : start + _SPAN], similarity(block, kept[start : start + _SPAN]), threshold)
        _note(alike, block, np.tril(similarity(block, block), -1), threshold)
        gone: set[int] = set()
        for row, others in zip(block.tolist(), alike, strict=True):
            for other, value in others:
                if other in gone:
                    continue
                if is_apart is not None and is_apart(other, row):
                    found.apart.append((other, row))
                    continue
                found.merged.append((row, other, value))
                gone.add(row)
                break
        kept = np.concatenate([kept, [row for row in block.tolist() if row not in gone]]).astype(np.int64)
    lost = {row for row, _, _ in found.merged}
    found.apart = [pair for pair in found.apart if pair[1] not in lost]
    return found


def _note(alike: list[list[tuple[int, float]]], others: Indices, values: NDArray[np.float32], threshold: float) -> None:
    """Enter the pairs of one block that reach the threshold; a row's own place is below it where that is above 0."""
    for row, other in zip(*(places.tolist() for places in np.nonzero(values >= threshold)), strict=True):
        alike[row].append((int(others[other]), float(values[row, other])))


def parted(rows: Indices, within: Sequence[Hashable] | None) -> list[Indices]:
    """Rows by equal value of `within`, each part ascending; one part where there is none."""
    if within is None:
        return [rows]
    parts: dict[Hashable, list[int]] = {}
    for row in rows.tolist():
        parts.setdefault(within[row], []).append(row)
    return [np.array(part, dtype=np.int64) for part in parts.values() if len(part) > 1]
