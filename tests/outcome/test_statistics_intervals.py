"""Intervals of one score, beside statsmodels and by simulation."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from luthier.errors import DataError, RequestError
from luthier.outcome.statistics import above_chance, accuracy_interval, mean_interval, wilson
from luthier.outcome.statistics.clusters import bootstrap_means, cluster_ids, design_effects


@pytest.mark.parametrize(("right", "n"), [(0, 7), (3, 7), (7, 7), (124, 162), (127, 162), (2400, 3137)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilson_is_that_of_statsmodels(right: int, n: int, level: float) -> None:
    assert wilson(right, n, level) == pytest.approx(proportion_confint(right, n, 1 - level, "wilson"), abs=1e-12)


def test_the_intervals_of_the_headline_pair() -> None:
    assert np.round(wilson(124, 162), 3).tolist() == [0.695, 0.824]
    assert np.round(wilson(127, 162), 3).tolist() == [0.714, 0.840]


def test_items_on_their_own_have_wilsons_interval() -> None:
    correct = np.repeat([1.0, 0.0], [30, 10])
    expected = {"value": 0.75, "ci": list(wilson(30, 40)), "n": 40}
    assert accuracy_interval(correct) == expected
    assert accuracy_interval(correct, [""] * 40) == expected
    assert accuracy_interval(correct, ["one text"] * 40) == expected


def test_like_items_of_one_group_count_as_one() -> None:
    correct = np.repeat(np.repeat([1.0, 0.0], [30, 10]), 5)
    groups = np.repeat([f"page {place}" for place in range(40)], 5).tolist()
    low, high = accuracy_interval(correct, groups)["ci"]
    assert high - low == pytest.approx(np.subtract(*wilson(30, 40)[::-1]), rel=0.1)
    assert accuracy_interval(np.ones(200), groups)["ci"] == list(wilson(40, 40))


def test_the_cluster_bootstrap_covers_where_wilson_does_not() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat([f"page {place}" for place in range(60)], 5).tolist()
    covered, naive = 0, 0
    for seed in range(200):
        correct = (rng.random(300) < np.repeat(rng.beta(1.5, 0.5, 60), 5)).astype(float)
        low, high = accuracy_interval(correct, groups, resamples=400, seed=seed)["ci"]
        covered += low <= 0.75 <= high
        low, high = wilson(correct.sum(), 300)
        naive += low <= 0.75 <= high
    assert covered >= 180
    assert naive < 170


def test_the_bootstrap_of_a_mean_is_that_of_scipy() -> None:
    values = np.random.default_rng(1).gamma(2.0, size=300)
    ours = mean_interval(values, resamples=4000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(2))
    assert ours["value"] == pytest.approx(values.mean())
    assert ours["ci"] == pytest.approx(list(theirs.confidence_interval), abs=0.02)


def test_all_rows_are_drawn_alike_and_groups_keep_together() -> None:
    row = np.random.default_rng(3).random(30)
    members = cluster_ids(["a", "b", "c"] * 10, 30)
    means = bootstrap_means(np.stack([row, 2 * row]), members, resamples=500, seed=0)
    assert np.allclose(means[:, 1], 2 * means[:, 0])
    by_group = [row[members == group].mean() for group in range(3)]
    possible = {round(float(np.mean(drawn)), 9) for drawn in np.array(np.meshgrid(*[by_group] * 3)).reshape(3, -1).T}
    assert {round(float(mean), 9) for mean in means[:, 0]} == possible


def test_design_effects_of_like_and_of_unlike_groups() -> None:
    members = cluster_ids([str(place // 10) for place in range(1000)], 1000)
    rng = np.random.default_rng(0)
    alike, unlike = np.repeat(rng.random(100), 10), rng.random(1000)
    found = design_effects(np.stack([alike, unlike, np.ones(1000)]), members)
    assert found[0] == pytest.approx(10)
    assert 1 <= found[1] < 1.5
    assert found[2] == 10
    assert design_effects(unlike[None], np.arange(1000)).tolist() == [1.0]


def test_better_than_chance_begins_where_the_exact_test_does() -> None:
    for n, share in ((162, 0.580), (3137, 0.518)):
        least = above_chance(n)
        assert least is not None
        assert round(least, 3) == share
        assert stats.binomtest(round(least * n), n).pvalue <= 0.05 < stats.binomtest(round(least * n) - 1, n).pvalue
    assert above_chance(4) is None
    four_way = above_chance(100, 0.25)
    assert four_way is not None
    assert stats.binomtest(round(four_way * 100), 100, 0.25, "greater").pvalue <= 0.025


def test_what_bears_no_interval_is_refused() -> None:
    for call in (lambda: wilson(3, 0), lambda: wilson(5, 4), lambda: wilson(1, 4, 1.0)):
        with pytest.raises(RequestError):
            call()
    with pytest.raises(RequestError, match="resamples"):
        mean_interval(np.ones(3), resamples=0)
    with pytest.raises(DataError, match="groups"):
        accuracy_interval(np.ones(3), ["a"])
    with pytest.raises(DataError):
        accuracy_interval(np.array([]))
