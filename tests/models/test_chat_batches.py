"""All lessons in forward passes within limits, for looking at them: many rows, one look at each."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from luthier.models.chat_batches import ChatFeed, Layout, in_order
from luthier.models.lessons import Lessons


def lessons_of(lengths: list[int]) -> Lessons:
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    count = int(starts[-1])
    return Lessons(
        np.zeros(count, np.int32),
        np.ones(count, np.float32),
        starts,
        np.arange(len(lengths)),
        [str(row) for row in range(len(lengths))],
        {},
    )


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("rows", "tokens"), [(1, 0), (8, 0), (8, 600), (64, 600), (64, 50)])
def test_every_row_is_looked_at_once_and_no_pass_is_larger_than_its_limits(packed, rows, tokens):
    rng = np.random.default_rng(7)
    lengths = rng.lognormal(4, 1, 500).astype(int).clip(3, 2000)
    lessons, layout = lessons_of(lengths.tolist()), Layout(8, rows, tokens, packed)
    found = in_order(lessons, layout)
    assert sorted(itertools.chain.from_iterable(found)) == list(range(500))
    for one in found:
        size = lengths[one].sum() if packed else lengths[one].max() * len(one)
        assert len(one) <= rows
        assert not tokens or size <= tokens or len(one) == 1
    longest = [lengths[one].max() for one in found]
    assert longest == sorted(longest)


@pytest.mark.parametrize("packed", [True, False])
def test_it_takes_few_more_passes_than_a_search_for_the_fullest_would(packed):
    """Beside what a step's layout finds, which looks at every pass for every row: first fit, the longest first."""
    lengths = np.random.default_rng(7).lognormal(6, 0.6, 1000).astype(int).clip(20, 2048)
    lessons, layout = lessons_of(lengths.tolist()), Layout(8, 16, 4096, packed)
    feed = ChatFeed(lessons, lambda _epoch: np.arange(1000), layout, 0)
    assert len(in_order(lessons, layout)) <= 1.2 * len(feed.layout_of(range(1000)))


def test_without_rows_there_is_no_pass():
    assert in_order(lessons_of([]), Layout(8, 8, 100)) == []
