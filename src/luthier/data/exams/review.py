"""What a reader of scores should know of an exam: repeats, where right answers stand, how long they are.

Knows items; refuses to leave any out or to judge an exam: each finding is a sentence with its figures. p-values test
that right options stand in every place equally often, and are the longest as often as chance has it: Pearson's
chi-square over the numbers of options that occur, or the exact binomial test where there are two cells.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from luthier.data.exams.exam import ExamItem
from luthier.schema import Drop, canonical

Floats = NDArray[np.float64]


def notes_of(items: Sequence[ExamItem], unreadable: Sequence[Drop]) -> list[str]:
    """Sentences on an exam of one item or more, the gravest first."""
    found = [*_left_out(items, unreadable), *_places(items), *_lengths(items), *_beginnings(items)]
    return [*found, *_repeats(items), *_counts(items)]


def uniform_p(cells: Sequence[tuple[Floats, Floats]]) -> float:
    """p of observed counts (shape (k,)) under expected shares (shape (k,), sum 1), the groups taken together.

    One group of two cells: exact two-sided binomial test. Else the sum of Pearson's statistics, whose degrees of
    freedom add up; it is an approximation where an expected count is below 5.
    """
    from scipy import stats

    if len(cells) == 1 and len(cells[0][0]) == 2:
        counts, shares = cells[0]
        return float(stats.binomtest(int(counts[0]), int(counts.sum()), float(shares[0])).pvalue)
    statistic = sum(float(((seen - seen.sum() * share) ** 2 / (seen.sum() * share)).sum()) for seen, share in cells)
    return float(stats.chi2.sf(statistic, sum(len(seen) - 1 for seen, _ in cells)))


def _left_out(items: Sequence[ExamItem], unreadable: Sequence[Drop]) -> list[str]:
    if not unreadable:
        return []
    reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(d.reason for d in unreadable).items())
    first = unreadable[0]
    total = len(items) + len(unreadable)
    return [
        f"{len(unreadable):,} of {total:,} items are left out ({reasons}); the first is {first.origin}: {first.detail}"
    ]


def _places(items: Sequence[ExamItem]) -> list[str]:
    counts = Counter(item.answer for item in items)
    place, most = counts.most_common(1)[0]
    if most == len(items) > 1:
        where = "first" if place == 0 else f"in place {place + 1}"
        return [
            f"the right option always stands {where}: a model that prefers this place scores 100 % without reading; "
            "trust only what is asked in both orders, or without showing the options beside one another"
        ]
    by_size: dict[int, Counter[int]] = defaultdict(Counter)
    for item in items:
        by_size[len(item.options)][item.answer] += 1
    cells = [
        (np.array([seen[at] for at in range(size)], dtype=np.float64), np.full(size, 1 / size))
        for size, seen in by_size.items()
    ]
    shown = ", ".join(f"{counts[at]:,}" for at in range(max(by_size)))
    return [f"the right option stands in places 1 to {max(by_size)} this often: {shown} (equal shares: {_p(cells)})"]


def _lengths(items: Sequence[ExamItem]) -> list[str]:
    """How often the right option is the longest, among items in which one option alone is."""
    if len({item.options for item in items}) == 1:  # yes and no, say: then this is the balance of places again
        return []
    by_size: dict[int, list[bool]] = defaultdict(list)
    for item in items:
        sizes = [len(option) for option in item.options]
        if sizes.count(max(sizes)) == 1:
            by_size[len(sizes)].append(sizes[item.answer] == max(sizes))
    total, right = sum(map(len, by_size.values())), sum(map(sum, by_size.values()))
    if not total:
        return []
    cells = [
        (np.array([sum(seen), len(seen) - sum(seen)], dtype=np.float64), np.array([1 / size, 1 - 1 / size]))
        for size, seen in by_size.items()
    ]
    expected = sum(len(seen) / size for size, seen in by_size.items())
    return [
        f"of {total:,} items with one longest option it is the right one in {right:,} "
        f"(by chance {expected:,.1f}: {_p(cells)})"
    ]


def _beginnings(items: Sequence[ExamItem]) -> list[str]:
    """How many items have an option that goes on where another one ends."""
    found = [item.id for item in items if any(_goes_on(*pair) for pair in permutations(item.options, 2))]
    if not found:
        return []
    return [
        f"in {len(found):,} items an option is the beginning of another, and with method text, not normalised, the "
        f"longer of the two is never chosen; the first is {found[0]}"
    ]


def _goes_on(one: str, other: str) -> bool:
    """Whether the other option begins with the whole of this one, which ends there at the end of a word."""
    return len(other) > len(one) and other.startswith(one) and not other[len(one)].isalnum()


def _repeats(items: Sequence[ExamItem]) -> list[str]:
    seen: dict[str, list[ExamItem]] = defaultdict(list)
    for item in items:
        seen[canonical([item.question, item.before, sorted(item.options), [m.media for m in item.media]])].append(item)
    repeated = [same for same in seen.values() if len(same) > 1]
    if not repeated:
        return []
    extra = sum(len(same) - 1 for same in repeated)
    torn = sum(len({item.options[item.answer] for item in same}) > 1 for same in repeated)
    note = f"{extra:,} items ask what another asks, with the same options; the first are {repeated[0][0].id} and "
    note += repeated[0][1].id
    return [note + (f"; {torn:,} such questions have answers that contradict each other" if torn else "")]


def _counts(items: Sequence[ExamItem]) -> list[str]:
    sizes = Counter(len(item.options) for item in items)
    if len(sizes) == 1:
        return []
    return [
        "the number of options differs: " + ", ".join(f"{n:,} items have {size}" for size, n in sorted(sizes.items()))
    ]


def _p(cells: Sequence[tuple[Floats, Floats]]) -> str:
    p = uniform_p(cells)
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
