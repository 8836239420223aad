"""The mixture: exact quotas, no silent repeats, and an order that follows from seed and epoch alone."""

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from luthier.data.mix import MixSource, plan_mix
from luthier.errors import DataError
from luthier.recipe_data import Mix


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(
        st.tuples(st.integers(1, 30), st.integers(0, 20), st.sampled_from([1.0, 1.5, 3.0])), min_size=1, max_size=4
    ),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 5),
)
def test_an_epoch_takes_each_quota_in_whole_passes(sizes: list[tuple[int, int, float]], seed: int, epoch: int) -> None:
    sources = [MixSource(f"s{i}", rows, cap=cap, epochs=times) for i, (rows, cap, times) in enumerate(sizes)]
    plan = plan_mix(sources, Mix(), seed)
    order = plan.order(epoch)
    assert len(order) == len(plan) == sum(min(cap or 10**9, int(rows * times)) for rows, cap, times in sizes)
    start = 0
    for source, quota in zip(sources, plan.quotas, strict=True):
        own = [int(i) - start for i in order if start <= i < start + source.rows]
        assert len(own) == quota
        for begin in range(0, quota, source.rows):
            one_pass = own[begin : begin + source.rows]
            assert len(set(one_pass)) == len(one_pass)
        start += source.rows


def test_weights_are_met_exactly_and_exhaust_no_source() -> None:
    sources = [MixSource("a", 7000, weight=0.7), MixSource("b", 9000, weight=0.3)]
    assert plan_mix(sources, Mix(), 1).quotas == (7000, 3000)
    assert plan_mix(sources, Mix(total=101), 1).quotas == (71, 30)
    assert plan_mix([MixSource("a", 100), MixSource("b", 10_000)], Mix(temperature=2), 1).quotas == (100, 1000)
    assert plan_mix([MixSource("a", 30), MixSource("b", 70)], Mix(temperature=1), 1).quotas == (30, 70)
    assert plan_mix([MixSource("a", 30), MixSource("b", 70)], Mix(total=10), 1).quotas == (3, 7)


@pytest.mark.parametrize(
    ("sources", "mix", "message"),
    [
        ([MixSource("full", 9), MixSource("hollow", 0)], Mix(), "source hollow: is empty"),
        ([MixSource("a", 9, weight=1), MixSource("b", 9)], Mix(), "source b: has no weight"),
        ([MixSource("a", 9, weight=-1)], Mix(), "source a: a weight of -1"),
        (
            [MixSource("a", 9, weight=1), MixSource("b", 90, weight=1)],
            Mix(total=40),
            "source a: .* asks for 20 .* at most 9",
        ),
        ([MixSource("a", 1), MixSource("b", 10**6)], Mix(total=10), "source a: its share of 10 rows"),
        ([], Mix(), "no sources"),
    ],
)
def test_a_source_that_cannot_give_its_share_is_named(sources: list[MixSource], mix: Mix, message: str) -> None:
    with pytest.raises(DataError, match=message):
        plan_mix(sources, mix, 1)


def test_a_capped_source_shows_every_row_over_the_epochs() -> None:
    plan = plan_mix([MixSource("a", 10, cap=3)], Mix(), 5)
    seen = [set(plan.order(epoch).tolist()) for epoch in range(4)]
    assert all(len(rows) == 3 for rows in seen)
    assert set.union(*seen) == set(range(10))


def test_repeated_rows_come_as_often_as_they_are_told() -> None:
    plan = plan_mix([MixSource("a", 3, repeats=np.array([2, 0, 1]))], Mix(), 5)
    assert Counter(plan.order(0).tolist()) == {0: 2, 2: 1}


def test_the_order_is_the_same_in_a_fresh_process() -> None:
    code = (
        "from luthier.data.mix import *;"
        "p = plan_mix([MixSource('a', 50, cap=20), MixSource('b', 9, epochs=2.5)], Mix(), 3);"
        "print(p.order(2).tolist(), p.row_at(2, 7))"
    )
    plan = plan_mix([MixSource("a", 50, cap=20), MixSource("b", 9, epochs=2.5)], Mix(), 3)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert found == f"{plan.order(2).tolist()} {plan.row_at(2, 7)}"
    assert plan.order(1).tolist() != plan.order(2).tolist()


def test_every_row_is_as_likely_in_every_place() -> None:
    plan = plan_mix([MixSource("a", 4), MixSource("b", 4)], Mix(), 11)
    counts = np.zeros((8, 8))
    for epoch in range(2000):
        counts[np.arange(8), plan.order(epoch)] += 1
    assert stats.chisquare(counts.ravel(), ddof=14).pvalue > 1e-4


def test_the_table_shows_what_was_asked_and_what_came() -> None:
    plan = plan_mix([MixSource("a", 10, weight=2), MixSource("b", 10, weight=1)], Mix(total=10), 1)
    assert "66.6667%  70.0000%" in plan.table()
    assert [source["quota"] for source in plan.to_json()["sources"]] == [7, 3]
