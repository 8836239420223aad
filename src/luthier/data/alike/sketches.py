"""Finds pairs of rows that may share most of their shingles, and says how much they share.

Knows hashes of shingles; refuses to know texts. Candidates are rows that agree in a whole band of a MinHash sketch
(Broder 1997; banding as in Leskovec et al., Mining of Massive Datasets, section 3.4); the similarity of a pair is the
Jaccard index of the two sets of shingles themselves, never the sketch's estimate. Shingles wait in a file; memory holds
8 bytes for each band of a row.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rensa import RMinHash

from luthier.data.alike.shingles import Hashes, Offsets, mix, shingle_batch

Indices = NDArray[np.int64]
Pairs = NDArray[np.int64]
"""(pairs, 2), the first of each below the second."""

MISSED = 1e-4
"""Share of pairs at exactly the threshold that no band may find."""
CROWD = 16
"""Rows of one band value up to which all are compared with all."""
_STARS = 4
_TIRED = 48  # meetings in crowds after which a row meets the first few alone
_PERMUTATIONS = 128
_SEED = 20_261_121
_BITS = np.uint64((1 << 54) - 1)
_ELEMENTS = 1 << 21
_ROWS = 1000  # below 2^10: the row's number goes into a hash's upper ten bits


def bands_for(threshold: float) -> tuple[int, int]:
    """(bands, values in a band): the longest bands of some 128 values that miss MISSED of the pairs at `threshold`."""
    for values in range(16, 0, -1):
        agree = threshold**values
        bands = 1 if agree >= 1.0 else math.ceil(math.log(MISSED) / math.log1p(-agree))
        if bands * values <= _PERMUTATIONS:
            return bands, values
    return _PERMUTATIONS, 1


class ShingleStore:
    """Shingles of all rows in a file of `folder`, and the rows' band values in memory; a context manager."""

    def __init__(self, folder: Path, threshold: float, size: int) -> None:
        self.bands, self.values = bands_for(threshold)
        self.size = size
        self._file = tempfile.NamedTemporaryFile(dir=folder, prefix=".shingles-")  # noqa: SIM115
        self._lengths: list[Indices] = []
        self._keys: list[Hashes] = []
        self.offsets: Offsets = np.zeros(1, dtype=np.int64)
        self.keys: Hashes = np.empty((0, self.bands), dtype=np.uint64)

    def __enter__(self) -> ShingleStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def fill(self, batches: Iterable[Sequence[str] | pa.StringArray], alive: NDArray[np.bool_] | None = None) -> None:
        """Read all rows, in order; those that are not alive keep their number and have no shingles."""
        at = 0
        for batch in batches:
            texts = batch if isinstance(batch, list) else pa.array(batch).to_pylist()
            if alive is not None:
                texts = [text if live else "" for text, live in zip(texts, alive[at : at + len(texts)], strict=True)]
            at += len(texts)
            self.add(texts)
        self._file.flush()
        lengths = np.concatenate([*self._lengths, np.empty(0, dtype=np.int64)])
        self.offsets = np.concatenate([self.offsets, self.offsets[-1] + np.cumsum(lengths)])
        self.keys = np.concatenate([self.keys, *self._keys])
        self._lengths, self._keys = [], []

    def add(self, texts: Sequence[str]) -> None:
        """Hash and sketch the next rows."""
        found = shingle_batch(texts, self.size)
        self._file.write(found.hashes.tobytes())
        self._lengths.append(np.diff(found.offsets))
        sketch = RMinHash.digest_matrix_from_flat_token_hashes(
            found.hashes, found.offsets.astype(np.uint64), self.bands * self.values, _SEED
        )
        matrix = np.array(sketch.to_rows(), dtype=np.uint64).reshape(len(texts), self.bands, self.values)
        keys = np.zeros(matrix.shape[:2], dtype=np.uint64)
        for k in range(self.values):
            keys = mix(keys + matrix[:, :, k] + np.uint64(1))
        self._keys.append(keys)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def filled(self) -> Indices:
        """Numbers of the rows that have shingles."""
        return np.flatnonzero(np.diff(self.offsets) > 0)

    @property
    def bytes_per_row(self) -> float:
        """Bytes of memory that a row holds: band values, offset and the arrays that sort one band."""
        return self.bands * 8 + 8 + 3 * 8

    def jaccard(self, pairs: Pairs) -> NDArray[np.float64]:
        """The Jaccard index of the sets of shingles of each pair; (pairs,)."""
        found = np.zeros(len(pairs))
        if not len(pairs):
            return found
        order = np.lexsort((pairs[:, 1], pairs[:, 0]))
        shingles = np.memmap(self._file.name, dtype=np.uint64, mode="r")
        weight = np.diff(self.offsets)[pairs[order]].sum(axis=1)
        for part in _parts(weight, _ROWS // 2):
            chosen = order[part]
            found[chosen] = self._jaccard(shingles, pairs[chosen])
        return found

    def _jaccard(self, shingles: Hashes, pairs: Pairs) -> NDArray[np.float64]:
        rows, place = np.unique(pairs, return_inverse=True)
        place = place.reshape(pairs.shape)
        lengths = np.diff(self.offsets)[rows]
        tagged = np.concatenate([shingles[self.offsets[row] : self.offsets[row + 1]] for row in rows.tolist()])
        tagged &= _BITS
        tagged |= np.repeat(np.arange(len(rows), dtype=np.uint64) << np.uint64(54), lengths)
        tagged.sort()
        tagged = tagged[np.concatenate([[True], tagged[1:] != tagged[:-1]])]
        bounds = np.searchsorted(tagged, np.arange(len(rows) + 1, dtype=np.uint64) << np.uint64(54))
        sizes = np.diff(bounds)
        tagged &= _BITS
        both = np.concatenate([tagged[bounds[i] : bounds[i + 1]] for i in place.ravel().tolist()])
        total = sizes[place].sum(axis=1)
        both |= np.repeat(np.arange(len(pairs), dtype=np.uint64) << np.uint64(54), total)
        both.sort()
        twice = both[1:][both[1:] == both[:-1]] >> np.uint64(54)
        shared = np.bincount(twice.astype(np.int64), minlength=len(pairs))
        return np.asarray(shared / (total - shared))


def _parts(weight: Indices, count: int) -> Iterable[slice]:
    """Slices of at most `count` items and, but for single items, some _ELEMENTS of weight."""
    ends, at = np.cumsum(weight), 0
    while at < len(weight):
        spent = ends[at - 1] if at else 0
        stop = max(at + 1, min(at + count, int(np.searchsorted(ends, spent + _ELEMENTS))))
        yield slice(at, stop)
        at = stop


@dataclass(frozen=True, slots=True)
class Candidates:
    """Pairs to verify; `crowded` rows share a band value with more than CROWD others and met only some of them."""

    pairs: Pairs
    crowded: int


def candidates(keys: Hashes, rows: Indices, group_of: Callable[[Indices], Hashes]) -> Candidates:
    """All pairs among `rows` that agree in a column of `keys`, each once.

    Where more than CROWD rows agree, such as the fillings of one template, `group_of` parts them (by their entities):
    within a group each row meets the first few and those just before it, and the groups' first rows meet likewise, so
    that the work grows with the rows and not with their square.
    """
    total = np.int64(len(keys))
    codes = np.empty(0, dtype=np.int64)
    crowded = np.zeros(len(keys), dtype=bool)
    met = np.zeros(len(keys), dtype=np.int64)
    held: dict[int, int] = {}
    for band in range(keys.shape[1]):
        column = keys[rows, band]
        order = np.argsort(column, kind="stable")
        ranked, owners = column[order], rows[order]
        bounds = np.concatenate([[0], np.flatnonzero(ranked[1:] != ranked[:-1]) + 1, [len(ranked)]])
        lengths = np.diff(bounds)
        found = [_all_pairs(owners, bounds[:-1][lengths == n], n) for n in range(2, CROWD + 1) if (lengths == n).any()]
        for at in np.flatnonzero(lengths > CROWD).tolist():
            members = owners[bounds[at] : bounds[at + 1]]
            crowded[members] = True
            new = np.array([row for row in members.tolist() if row not in held], dtype=np.int64)
            if len(new):
                held.update(zip(new.tolist(), group_of(new).tolist(), strict=True))
            found.append(
                _star_pairs(members, np.array([held[row] for row in members.tolist()], dtype=np.uint64), met >= _TIRED)
            )
            np.add.at(met, found[-1].ravel(), 1)
        if found:
            pairs = np.concatenate(found)
            codes = np.unique(np.concatenate([codes, pairs[:, 0] * total + pairs[:, 1]]))
    return Candidates(np.stack(np.divmod(codes, np.maximum(total, 1)), axis=1), int(crowded.sum()))


def _all_pairs(owners: Indices, starts: Indices, length: int) -> Pairs:
    """All pairs inside each run of `length` ascending rows."""
    first, second = np.triu_indices(length, 1)
    runs = starts[:, None]
    return np.stack([owners[(runs + first).ravel()], owners[(runs + second).ravel()]], axis=1)


def _star_pairs(members: Indices, groups: Hashes, tired: NDArray[np.bool_]) -> Pairs:
    """Pairs within groups, and among the groups' first rows; members ascend."""
    order = np.argsort(groups, kind="stable")
    bounds = np.concatenate([[0], np.flatnonzero(np.diff(groups[order])) + 1, [len(order)]])
    found = [
        _some_pairs(members[order[a:b]], tired) for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
    ]
    found.append(_some_pairs(np.sort(members[order[bounds[:-1]]]), tired))
    return np.concatenate(found)


def _some_pairs(rows: Indices, tired: NDArray[np.bool_]) -> Pairs:
    """Each row with the first _STARS rows and, where it is not tired, with the _STARS before it."""
    place, fresh = np.arange(len(rows)), np.flatnonzero(~tired[rows])
    found = [np.stack([np.full(len(rows) - k - 1, k), place[k + 1 :]], axis=1) for k in range(min(_STARS, len(rows)))]
    found += [
        np.stack([fresh[fresh >= k] - k, fresh[fresh >= k]], axis=1) for k in range(1, min(_STARS + 1, len(rows)))
    ]
    return rows[np.concatenate(found)] if found else np.empty((0, 2), dtype=np.int64)
