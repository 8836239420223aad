"""Lays an exam's item beside the stretch of a row that touches it: what they share, and whether it is a copy.

Knows words and their entities; refuses to know files, rows and how candidates are found. A sibling is another filling
of the item's template: inside the item's extent names, numbers or recurring words stand in each other's place. A copy
has the item's own. Only candidate pairs come here, so plain Python is quick enough.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from difflib import Match, SequenceMatcher
from functools import cached_property
from typing import NamedTuple

import numpy as np

from luthier.data.alike.entities import Signature, siblings, signatures
from luthier.data.alike.shingles import APART, PUNCTUATION

AROUND = 80
"""Words on either side of a shared run that are looked at."""
QUOTED_RUNS, QUOTED_ENTITIES = 3, 5
"""A verbatim run of 3n words that holds five of the item's own entities is quoted, whatever else was changed."""
SHOWN = 120
_MARGIN = 12
_TAIL = 3
_GAPS = ((3, 1), (8, 3), (20, 8))
"""(words between two shared runs, words that the farther one must have to belong to the same extent)."""
_CHARACTER = APART.pattern.strip("()")
_WORD = re.compile(f"{_CHARACTER}|(?:(?!{_CHARACTER})[0-9A-Za-z\x80-\U0010ffff])+")

Segment = tuple[str, bool]
Excerpt = tuple[Segment, ...]
"""Pieces of a text in order, each with whether it is shared."""


class Extent(NamedTuple):
    """Words item[0]:item[1] of an item lie beside words row[0]:row[1]. `shared`: (item, row, words) of equal runs."""

    item: tuple[int, int]
    row: tuple[int, int]
    shared: tuple[tuple[int, int, int], ...]

    @property
    def run(self) -> int:
        """Words of the longest run that is shared."""
        return max((size for _, _, size in self.shared), default=0)


class Text:
    """A text as it is compared (NFKC), where its words lie in it, and their signature; made where it is needed."""

    def __init__(self, text: str) -> None:
        self.text = text if text.isascii() else unicodedata.normalize("NFKC", text)

    @cached_property
    def spans(self) -> list[tuple[int, int]]:
        """(start, end) of each word; the words are those of `shingles.split_words`."""
        return [found.span() for found in _WORD.finditer(PUNCTUATION.sub(" ", self.text))]

    @cached_property
    def signature(self) -> Signature:
        return signatures([self.text])[0]

    @cached_property
    def lower(self) -> list[int]:
        """Each word's hash in lower case."""
        found: list[int] = self.signature.lower.tolist()
        return found

    def part(self, extent: tuple[int, int]) -> Signature:
        """The signature of some of its words."""
        chosen, whole = slice(*extent), self.signature
        counts = Counter(self.lower[chosen])
        return Signature(
            written=whole.written[chosen],
            lower=whole.lower[chosen],
            entity=whole.entity[chosen],
            opening=whole.opening[chosen],
            words=frozenset(counts),
            often=frozenset(word for word, count in counts.items() if count > 1),
        )


def lay_beside(item: Text, row: Text, item_at: tuple[int, int], row_at: tuple[int, int]) -> Extent:
    """The extent in which an item and a row agree, around words that are known to touch.

    `item_at` and `row_at` bound the words that touch; AROUND words on either side are looked at too. The extent grows
    from the longest shared run while the next one is near enough for its length.
    """
    first_i, first_r = max(0, item_at[0] - AROUND), max(0, row_at[0] - AROUND)
    ours = item.lower[first_i : item_at[1] + AROUND]
    theirs = row.lower[first_r : row_at[1] + AROUND]
    blocks = SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks()[:-1]
    if not blocks:
        return Extent((item_at[0], item_at[0]), (row_at[0], row_at[0]), ())
    longest = max(range(len(blocks)), key=lambda k: blocks[k].size)
    low = high = longest
    while high + 1 < len(blocks) and _belongs(blocks[high], blocks[high + 1], blocks[high + 1].size):
        high += 1
    while low > 0 and _belongs(blocks[low - 1], blocks[low], blocks[low - 1].size):
        low -= 1
    # A word or two that agree by chance behind the end of a quotation are no part of it.
    ends = len(ours) - _TAIL
    while high > longest and blocks[high].size < _TAIL and blocks[high].a + blocks[high].size < ends:
        high -= 1
    while low < longest and blocks[low].size < _TAIL and blocks[low].a > _TAIL:
        low += 1
    kept = blocks[low : high + 1]
    start = kept[0].a, kept[0].b
    end = kept[-1].a + kept[-1].size, kept[-1].b + kept[-1].size
    # The item's own last (or first) words are inside its extent, whatever stands in their place.
    left, right = first_i + start[0], len(item.lower) - first_i - end[0]
    before = min(start) if left <= _TAIL else 0
    after = min(right, len(theirs) - end[1]) if right <= _TAIL else 0
    return Extent(
        (first_i + start[0] - before, first_i + end[0] + after),
        (first_r + start[1] - before, first_r + end[1] + after),
        tuple((first_i + block.a, first_r + block.b, block.size) for block in kept),
    )


def _belongs(left: Match, right: Match, size: int) -> bool:
    gap = max(right.a - left.a - left.size, right.b - left.b - left.size)
    return any(gap <= most and size >= least for most, least in _GAPS)


def is_sibling(item: Text, row: Text, extent: Extent, ngram: int) -> bool:
    """Whether the row's stretch is another filling of the item's template, and so no copy of it."""
    entity = item.signature.entity
    for at, _, size in extent.shared:
        if size >= QUOTED_RUNS * ngram and int(np.count_nonzero(entity[at : at + size])) >= QUOTED_ENTITIES:
            return False
    return siblings(item.part(extent.item), row.part(extent.row))


def excerpts(item: Text, row: Text, extent: Extent) -> tuple[Excerpt, Excerpt]:
    """What a person is shown: the item's and the row's words in and around the extent, shared words marked."""
    ours = {at + k for at, _, size in extent.shared for k in range(size)}
    theirs = {at + k for _, at, size in extent.shared for k in range(size)}
    return _excerpt(item, extent.item, ours), _excerpt(row, extent.row, theirs)


def head(text: Text) -> Excerpt:
    """The first words of a text, none of them marked: for a hit that is not of words."""
    return _excerpt(text, (0, 0), set())


def _excerpt(text: Text, extent: tuple[int, int], marked: set[int]) -> Excerpt:
    spans = text.spans
    first = max(0, extent[0] - _MARGIN)
    last = min(len(spans), max(extent[1] + _MARGIN, first + 4 * _MARGIN), first + SHOWN + 2 * _MARGIN)
    if first >= last:
        return ((text.text[:400], False),) if text.text else ()
    pieces: list[Segment] = [("… ", False)] if first else []
    at = spans[first][0] if first else 0
    number = first
    while number < last:
        stop = number
        while stop < last and (stop in marked) == (number in marked):
            stop += 1
        inside = number in marked
        begin, end = spans[number][0], spans[stop - 1][1]
        if inside:
            pieces += [(text.text[at:begin], False)] if begin > at else []
            pieces.append((text.text[begin:end], True))
        else:
            pieces.append((text.text[at:end], False))
        at, number = end, stop
    rest = text.text[at:] if last == len(spans) else " …"
    return (*pieces, (rest, False)) if rest else tuple(pieces)
