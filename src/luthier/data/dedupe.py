"""Finds rows that say the same: equal keys, or texts that share most of their word shingles.

Knows texts by their number; refuses to know rows, files and sources. Of rows that are one, the first stays. Every merge
is verified: the similarity of a row and the row that stands for it is the Jaccard index of their shingles, and a last
look keeps siblings apart (texts equal but for names and numbers).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from luthier.data.alike.entities import Signature, siblings, signatures
from luthier.data.alike.shingles import Hashes
from luthier.data.alike.sketches import CROWD, Indices, Pairs, ShingleStore, candidates
from luthier.errors import DataError

__all__ = ["Found", "Merge", "TextOf", "exact", "near", "near_between"]

Batches = Iterable[Sequence[str] | pa.StringArray]
TextOf = Callable[[Indices], list[str]]
"""The texts of rows, by their numbers (ascending), in the same order."""

Agree = Callable[[Pairs], NDArray[np.bool_]]
"""Which pairs of rows, (pairs, 2) in order of their first, are the same in every part."""
SIBLINGS_SHOWN = 1000
_READ = 512
_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class Merge:
    """Row `index` is row `into` again. `how` is exact, near, semantic, image or audio; `similarity` is in 0..1."""

    index: int
    into: int
    how: str
    similarity: float


@dataclass
class Found:
    """What a look for duplicates found: merges in order of `index`, and pairs that were alike but kept."""

    merges: list[Merge] = field(default_factory=list)
    siblings: list[tuple[int, int]] = field(default_factory=list)
    """The first SIBLINGS_SHOWN pairs of kept rows that are alike but for names, numbers or a recurring word."""
    sibling_count: int = 0
    refused: int = 0
    """Pairs that were alike as a whole and that a second look refused."""
    notes: list[str] = field(default_factory=list)
    """For a person: where work was bounded."""
    bytes_per_row: float = 0.0
    """Memory held per row while looking (the texts themselves are not held)."""
    compared: int = 0
    """Pairs whose similarity was computed."""


def exact(quick: Hashes, ids: Hashes, keys_of: Callable[[Indices], list[bytes]]) -> Found:
    """Rows of equal content; each is merged into the first of its kind.

    `quick` (rows,) is equal for rows that may be equal, `ids` (rows,) for rows that surely are; `keys_of` gives the
    keys that decide, and is asked only for rows that `quick` puts together and `ids` does not.
    """
    found = Found(bytes_per_row=3 * 8)
    _, group, counts = np.unique(quick, return_inverse=True, return_counts=True)
    alike = np.flatnonzero(counts[group] > 1)
    if not len(alike):
        return found
    same_id = np.unique(ids[alike], return_inverse=True)[1]
    _, first, kind = np.unique(group[alike] * len(alike) + same_id, return_index=True, return_inverse=True)
    code = group[alike[first]].astype(np.int64)
    unsure = np.flatnonzero(np.bincount(code, minlength=len(counts))[code] > 1)
    unsure = unsure[np.argsort(first[unsure])]
    codes: dict[bytes, int] = {}
    for at in range(0, len(unsure), _READ):
        some = unsure[at : at + _READ]
        keys = keys_of(alike[first[some]])
        code[some] = [len(counts) + codes.setdefault(key, len(codes)) for key in keys]
    _, stands, owner = np.unique(code[kind], return_index=True, return_inverse=True)
    into = stands[owner]
    merged = np.flatnonzero(into != np.arange(len(alike)))
    pairs = zip(alike[merged].tolist(), alike[into[merged]].tolist(), strict=True)
    found.merges = [Merge(index, to, "exact", 1.0) for index, to in pairs]
    return found


def near(
    batches: Batches,
    threshold: float,
    shingle: int,
    text_of: TextOf,
    folder: Path,
    alive: NDArray[np.bool_] | None = None,
    agree: Agree | None = None,
) -> Found:
    """Rows whose sets of `shingle`-word shingles have a Jaccard index of at least `threshold`.

    `batches` gives every row's text in order; rows that are not `alive` are passed over. A row is merged into the first
    kept row that it is like, so that every merge is verified against the row that stands for it; `agree` may refuse
    pairs that are alike as a whole. `folder` takes a temporary file of 8 bytes a word. Raises DataError for a
    threshold outside 0..1.
    """
    _check(threshold, shingle)
    with ShingleStore(folder, threshold, shingle) as store:
        store.fill(batches, alive)
        return _search(store, threshold, _Texts(text_of), 0, agree)


def near_between(
    batches_a: Batches,
    batches_b: Batches,
    threshold: float,
    shingle: int,
    text_of_a: TextOf,
    text_of_b: TextOf,
    folder: Path,
) -> Found:
    """Rows of `a` that a row of `b` is like: a merge's `index` counts in `a`, its `into` in `b`, and so do siblings."""
    _check(threshold, shingle)
    with ShingleStore(folder, threshold, shingle) as store:
        store.fill(batches_b)
        count = len(store)
        store.fill(batches_a)

        def text_of(rows: Indices) -> list[str]:
            of_b, of_a = rows[rows < count], rows[rows >= count] - count
            return (text_of_b(of_b) if len(of_b) else []) + (text_of_a(of_a) if len(of_a) else [])

        found = _search(store, threshold, _Texts(text_of), count, None)
    found.merges = [Merge(m.index - count, m.into, m.how, m.similarity) for m in found.merges]
    found.siblings = [(a - count, b) for b, a in found.siblings]
    return found


def _check(threshold: float, shingle: int) -> None:
    if not 0.0 < threshold <= 1.0:
        raise DataError(f"a similarity of {threshold:g} is not in 0..1", "give a share such as 0.8")
    if shingle < 1:
        raise DataError(f"shingles of {shingle} words", "give at least 1; 3 is usual")


class _Texts:
    """Signatures of rows, read a few hundred at a time; the last ones are kept."""

    def __init__(self, text_of: TextOf) -> None:
        self._text_of = text_of
        self._held: dict[int, Signature] = {}

    def signatures(self, rows: Indices) -> dict[int, Signature]:
        """The signatures of ascending rows."""
        new = np.array([row for row in rows.tolist() if row not in self._held], dtype=np.int64)
        kept = {row: self._held[row] for row in rows.tolist() if row in self._held}
        self._held = kept | (dict(zip(new.tolist(), signatures(self._text_of(new)), strict=True)) if len(new) else {})
        return self._held

    def groups(self, rows: Indices) -> Hashes:
        """One number per row: equal where the sets of entities are."""
        keys = [
            found[row].key
            for at in range(0, len(rows), _READ)
            for found in [self.signatures(rows[at : at + _READ])]
            for row in rows[at : at + _READ].tolist()
        ]
        return np.array(keys, dtype=np.uint64)

    def siblings(self, pairs: Pairs) -> NDArray[np.bool_]:
        """Which pairs are fillings of one template; pairs in order of their first row."""
        found = np.zeros(len(pairs), dtype=bool)
        for at in range(0, len(pairs), _READ // 2):
            part = pairs[at : at + _READ // 2]
            known = self.signatures(np.unique(part))
            found[at : at + len(part)] = [siblings(known[a], known[b]) for a, b in part.tolist()]
        return found


def _search(store: ShingleStore, threshold: float, texts: _Texts, first_side: int, agree: Agree | None) -> Found:
    """All alike pairs of the store, then who stands for whom.

    Where `first_side` is not 0, only pairs with one row below it and one from it on count.
    """
    chosen = candidates(store.keys, store.filled, texts.groups)
    found = Found(bytes_per_row=store.bytes_per_row)
    if chosen.crowded:
        found.notes.append(
            f"{chosen.crowded:,} rows are much like more than {CROWD} others (one template, or many copies); "
            "each of them was compared with some of those, those of equal names and numbers first"
        )
    new = chosen.pairs
    if first_side:
        new = new[(new[:, 0] < first_side) & (new[:, 1] >= first_side)]
    known: dict[tuple[int, int], float] = {}
    alike: dict[int, list[int]] = {}
    into: dict[int, int] = {}
    apart: list[tuple[int, int]] = []
    for _ in range(_ROUNDS):
        if not len(new):
            break
        similarity = store.jaccard(new)
        found.compared += len(new)
        high = similarity >= threshold
        known |= zip(map(tuple, new.tolist()), np.where(high, similarity, 0.0).tolist(), strict=True)
        passed = new[high]
        kept_apart = texts.siblings(passed)
        apart += map(tuple, passed[kept_apart].tolist())
        passed = passed[~kept_apart]
        if agree is not None and len(passed):
            fits = agree(passed)
            found.refused += len(passed) - int(fits.sum())
            passed = passed[fits]
        for a, b in passed.tolist():
            alike.setdefault(b, []).append(a)
        into, wanted = _stand_for(alike)
        new = np.array(sorted(wanted - known.keys()), dtype=np.int64).reshape(-1, 2)
    else:
        found.notes.append(f"chains of copies of copies were followed for {_ROUNDS} rounds; some may be left")
    found.merges = [Merge(index, to, "near", known[to, index]) for index, to in sorted(into.items())]
    kept = sorted(pair for pair in apart if pair[0] not in into and pair[1] not in into)
    found.siblings, found.sibling_count = kept[:SIBLINGS_SHOWN], len(kept)
    return found


def _stand_for(alike: dict[int, list[int]]) -> tuple[dict[int, int], set[tuple[int, int]]]:
    """Each row's first like row that is kept; and pairs worth a look: a row like a merged one, and its stand-in."""
    into: dict[int, int] = {}
    wanted: set[tuple[int, int]] = set()
    for row in sorted(alike):
        standing = [other for other in alike[row] if other not in into]
        if standing:
            into[row] = min(standing)
        else:
            wanted |= {(into[other], row) for other in alike[row]}
    return into, wanted
