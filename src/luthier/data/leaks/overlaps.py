"""Finds where texts of a table touch texts of an exam: shared runs of words, whole copies, many shared shingles.

Knows hashes of words and their places; refuses to know what a touch means (a leak, a template, boilerplate): that is
judged on the words themselves. Everything is arrays; a Python object is made only where something was found.
Shapes: W words, T texts; hashes are 64 bits wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from luthier.data.alike.shingles import LOWER, fold, hash_words, pieces, split_words

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]

_K2, _K3 = np.uint64(0xC2B2AE3D27D4EB4F), np.uint64(0xD6E8FEB86659FD93)
_S1 = np.uint64(29)


class Words(NamedTuple):
    """`hashes` (W): one for each word of all texts, in order. `bounds` (T+1): text t is words bounds[t]:bounds[t+1]."""

    hashes: Hashes
    bounds: Places


def words_of(texts: Sequence[str]) -> Words:
    """The hashed words of some texts; case is folded, punctuation and white space only part words."""
    found, counts = [np.empty(0, np.uint64)], [np.zeros(1, np.int64)]
    for piece in pieces([fold(text) for text in texts]):
        words = split_words(piece)
        found.append(hash_words(words, LOWER))
        counts.append(np.diff(words.row_starts))
    return Words(np.concatenate(found), np.cumsum(np.concatenate(counts)))


def grams(hashes: Hashes, size: int) -> Hashes:
    """The hash of the `size` words from each place on, made by doubling; max(0, W - size + 1) of them."""
    count = len(hashes) - size + 1
    if count <= 0:
        return hashes[:0]
    power, width = hashes, 1
    made: Hashes | None = None
    covered = 0
    while True:
        if size & width:
            made = power[:count] if made is None else _joined(made, power[covered : covered + count])
            covered += width
        if covered == size:
            return made if made is not None else hashes[:count]
        power = _joined(power[: len(power) - width], power[width:])
        width *= 2


def _joined(left: Hashes, right: Hashes) -> Hashes:
    made: Hashes = left * _K2
    made += right
    made ^= made >> _S1
    made *= _K3
    return made


class Index:
    """Hashes that are looked for, each with its postings: (text, place) pairs."""

    def __init__(self, keys: Hashes, texts: Places, places: Places) -> None:
        order = np.argsort(keys, kind="stable")
        self.texts, self.places = texts[order], places[order]
        self.keys, first = np.unique(keys[order], return_index=True)
        self.first = np.append(first, len(order))
        # A table of one byte a slot answers most look-ups; 16 slots a key keep it right 15 times in 16.
        bits = min(26, max(12, int(16 * len(self.keys) + 1).bit_length()))
        self.shift = np.uint64(64 - bits)
        self.filter = np.zeros(1 << bits, np.bool_)
        self.filter[(self.keys >> self.shift).view(np.int64)] = True

    def find(self, hashes: Hashes) -> tuple[Places, Places]:
        """(place among `hashes`, number of the posting) for every posting of every hash that is looked for."""
        maybe = np.flatnonzero(self.filter[(hashes >> self.shift).view(np.int64)])
        if not len(maybe) or not len(self.keys):
            return maybe[:0], maybe[:0]
        wanted = hashes[maybe]
        key = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        right = self.keys[key] == wanted
        maybe, key = maybe[right], key[right]
        return spread(maybe, self.first[key], self.first[key + 1] - self.first[key])


def spread(labels: Places, first: Places, counts: Places) -> tuple[Places, Places]:
    """For each i the numbers first[i], first[i]+1 and so on, counts[i] of them, each beside labels[i]."""
    total = int(counts.sum())
    before = np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(labels, counts), np.arange(total) - before + np.repeat(first, counts)


@dataclass(frozen=True)
class Runs:
    """An index of all n-grams of some texts, without those that many of them share."""

    size: int
    index: Index
    boilerplate: int
    """Different n-grams that were left out."""
    samples: list[tuple[int, int]]
    """(text, place) of a few of them."""
    emptied: int
    """Texts whose every n-gram was left out."""


def runs_index(words: Words, size: int, most: int) -> Runs:
    """Index the n-grams of texts; one that is in more than `most` of them is boilerplate."""
    keys, place, text = _inner_grams(words, size)
    order = np.lexsort((text, keys))
    keys, place, text = keys[order], place[order], text[order]
    new_key = np.append(True, keys[1:] != keys[:-1])[: len(keys)]
    new_pair = new_key | np.append(True, text[1:] != text[:-1])[: len(keys)]
    number = np.cumsum(new_key) - 1
    spread_over = np.bincount(number, weights=new_pair) if len(keys) else np.zeros(0)
    kept = spread_over[number] <= most
    left_out = np.flatnonzero(spread_over > most)
    first = np.flatnonzero(new_key)
    return Runs(
        size,
        Index(keys[kept], text[kept], place[kept]),
        len(left_out),
        [(int(text[first[k]]), int(place[first[k]])) for k in left_out[:5]],
        len(np.unique(text)) - len(np.unique(text[kept])),
    )


def _inner_grams(words: Words, size: int) -> tuple[Hashes, Places, Places]:
    """(hash, place in its text, text) of every n-gram that lies within one text."""
    made = grams(words.hashes, size)
    place = np.arange(len(made))
    text = np.searchsorted(words.bounds, place, side="right") - 1
    whole = place + size <= words.bounds[text + 1]
    return made[whole], (place - words.bounds[text])[whole], text[whole]


class Run(NamedTuple):
    """A shared run: `words` words from `text_at` on in the text, from `row_at` on in the row."""

    row: int
    text: int
    row_at: int
    text_at: int
    words: int


def shared_runs(runs: Runs, hashes: Hashes, rows: Places) -> list[Run]:
    """The longest run that each row shares with each text. `rows` (R+1): where each row's words begin."""
    at, posting = runs.index.find(grams(hashes, runs.size))
    row = np.searchsorted(rows, at, side="right") - 1
    inside = at + runs.size <= rows[row + 1]
    at, row, posting = at[inside], row[inside], posting[inside]
    if not len(at):
        return []
    text, place = runs.index.texts[posting], runs.index.places[posting]
    lead = at - place
    order = np.lexsort((at, lead, text, row))
    row, text, lead, at, place = row[order], text[order], lead[order], at[order], place[order]
    same = (row[1:] == row[:-1]) & (text[1:] == text[:-1]) & (lead[1:] == lead[:-1]) & (at[1:] == at[:-1] + 1)
    first = np.flatnonzero(np.append(True, ~same))
    length = np.diff(np.append(first, len(at))) + runs.size - 1
    best: dict[tuple[int, int], Run] = {}
    for one, size in zip(first.tolist(), length.tolist(), strict=True):
        pair = int(row[one]), int(text[one])
        if pair not in best or best[pair].words < size:
            best[pair] = Run(*pair, int(at[one] - rows[pair[0]]), int(place[one]), size)
    return list(best.values())


class Wholes:
    """Texts that are looked for whole; each is found by its rarest five words and then compared word by word."""

    SEED = 5

    def __init__(self, words: Words) -> None:
        sizes = np.diff(words.bounds)
        self.texts = [words.hashes[a:b] for a, b in zip(words.bounds[:-1], words.bounds[1:], strict=True)]
        keys, place, text = _inner_grams(words, self.SEED)
        _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        order = np.lexsort((place, counts[inverse], text))
        rarest = order[np.append(True, text[order][1:] != text[order][:-1])[: len(order)]]
        self.index = Index(keys[rarest], text[rarest], place[rarest])
        # Three or four words are no evidence inside a long text, only as a turn of their own.
        self.short = {self.texts[t].tobytes(): int(t) for t in np.flatnonzero((sizes >= 3) & (sizes < self.SEED))}

    def find(self, hashes: Hashes, rows: Places, turns: Places) -> list[Run]:
        """Every text that a row holds whole, once for each row."""
        at, posting = self.index.find(grams(hashes, self.SEED))
        row = np.searchsorted(rows, at, side="right") - 1
        found: dict[tuple[int, int], Run] = {}
        starts = at - self.index.places[posting]
        texts = self.index.texts[posting]
        for start, text, number in zip(starts.tolist(), texts.tolist(), row.tolist(), strict=True):
            wanted = self.texts[text]
            end = start + len(wanted)
            if (number, text) in found or start < rows[number] or end > rows[number + 1]:
                continue
            if np.array_equal(hashes[start:end], wanted):
                found[number, text] = Run(number, text, int(start - rows[number]), 0, len(wanted))
        sizes = np.diff(turns)
        for turn in np.flatnonzero((sizes >= 3) & (sizes < self.SEED)) if self.short else ():
            start, end = int(turns[turn]), int(turns[turn + 1])
            text_of_turn = self.short.get(hashes[start:end].tobytes())
            if text_of_turn is not None:
                number = int(np.searchsorted(rows, start, side="right") - 1)
                found[number, text_of_turn] = Run(number, text_of_turn, start - int(rows[number]), 0, end - start)
        return list(found.values())


def _once(first: Places, second: NDArray[np.generic]) -> Places:
    """Where the different (first, second) pairs stand, sorted by first, then second."""
    order: Places = np.lexsort((second, first))
    a, b = first[order], second[order]
    new = np.append(True, (a[1:] != a[:-1]) | (b[1:] != b[:-1]))
    once: Places = order[new[: len(order)]]
    return once


class Near(NamedTuple):
    """A row's stretch (a turn, or all of it) whose shingles are those of a text, to a Jaccard similarity."""

    row: int
    text: int
    row_at: int
    words: int
    jaccard: float


class Likes:
    """Texts whose near copies are looked for, by exact Jaccard similarity of three-word shingles.

    A copy with similarity t shares at least t of a text's shingles, so of its rarest (1 - t) + 4 it shares four or
    more (prefix filtering with counts; Chaudhuri et al. 2006, Wang et al. 2012). A stretch of more than four times
    the text's size that only repeats the text is not seen here; whole copies are found by `Wholes`.
    """

    SIZE, LEAST, REPEATED = 3, 3, 4

    def __init__(self, words: Words, threshold: float) -> None:
        self.threshold = threshold
        keys, _, text = _inner_grams(words, self.SIZE)
        once = _once(text, keys)
        text, keys = text[once], keys[once]
        self.shingles, self.sizes = keys, np.bincount(text, minlength=len(words.bounds) - 1)
        self.first = np.cumsum(self.sizes) - self.sizes
        _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        order = np.lexsort((counts[inverse], text))
        text, keys = text[order], keys[order]
        least = np.ceil(threshold * self.sizes - 1e-9).astype(np.int64)
        self.needed = np.minimum(4, np.maximum(least, 1))
        rank = np.arange(len(text)) - self.first[text]
        indexed = (rank < (self.sizes - least + self.needed)[text]) & (self.sizes[text] >= self.LEAST)
        self.index = Index(keys[indexed], text[indexed], rank[indexed])

    def find(self, hashes: Hashes, rows: Places, turns: Places) -> list[Near]:
        """The best near copy of each text in each row, in a single turn or in the row as a whole."""
        made = grams(hashes, self.SIZE)
        at, posting = self.index.find(made)
        found: dict[tuple[int, int], Near] = {}
        for bounds in (turns, rows):
            for unit, text in self._candidates(at, posting, bounds):
                start, end = int(bounds[unit]), int(bounds[unit + 1])
                there = np.unique(made[start : end - self.SIZE + 1])
                wanted = self.shingles[self.first[text] : self.first[text] + self.sizes[text]]
                shared = len(np.intersect1d(there, wanted, assume_unique=True))
                jaccard = shared / (len(there) + len(wanted) - shared)
                row = int(np.searchsorted(rows, start, side="right") - 1)
                if jaccard >= self.threshold and ((row, text) not in found or found[row, text].jaccard < jaccard):
                    found[row, text] = Near(row, text, start - int(rows[row]), end - start, jaccard)
        return list(found.values())

    def _candidates(self, at: Places, posting: Places, bounds: Places) -> list[tuple[int, int]]:
        """(unit, text) pairs of fitting size that share enough of the text's rare shingles."""
        unit = np.searchsorted(bounds, at, side="right") - 1
        text = self.index.texts[posting]
        size = bounds[unit + 1] - bounds[unit] - self.SIZE + 1
        wanted = self.sizes[text]
        fits = (size >= self.threshold * wanted) & (size * self.threshold <= self.REPEATED * wanted)
        fits &= at + self.SIZE <= bounds[unit + 1]
        if not fits.any():
            return []
        width = len(self.sizes)
        pairs = unit[fits] * width + text[fits]
        # A shingle that comes twice in a unit counts once.
        once = _once(pairs, self.index.places[posting[fits]])
        pair, counts = np.unique(pairs[once], return_counts=True)
        pair = pair[counts >= self.needed[pair % width]]
        return [(int(one) // width, int(one) % width) for one in pair]
