"""Many candidates at once: levels and power by simulation, and second implementations."""

import itertools
import time
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from luthier.assess.metrics import Floats
from luthier.errors import DataError
from luthier.outcome.statistics import (
    accuracy_interval,
    all_pairs,
    holm,
    max_t,
    mcnemar_exact,
    significance_groups,
    simultaneous_band,
)
from support.sweeps import clusters, simulate_sweep


def exact_max_t(scores_KN: Floats, reference: int) -> Floats:
    """Single-step adjusted p over all 2^N flips, written the plain way."""
    difference = scores_KN - scores_KN[reference]
    scale = np.sqrt((difference**2).sum(axis=1))
    scale[scale == 0] = np.inf
    seen = np.abs(difference.sum(axis=1)) / scale
    flips = np.array(list(itertools.product([-1, 1], repeat=scores_KN.shape[1])))
    largest = (np.abs(flips @ difference.T) / scale).max(axis=1)
    return np.array([(largest >= value - 1e-9).mean() for value in seen])


def test_max_t_is_that_of_all_flips() -> None:
    scores = simulate_sweep(np.random.default_rng(3), [0.2, 0.8, 0.6], 14, alike=0.3)
    expected, found = exact_max_t(scores, 0), max_t(scores, 0, resamples=20_000)
    strongest = int(np.argmin(expected))
    assert found[strongest] == pytest.approx(expected[strongest], abs=0.012)
    assert (found <= expected + 0.012).all()  # stepping down only lowers
    assert found[0] == 1.0


def test_adjusted_p_is_never_below_that_of_the_comparison_alone() -> None:
    scores = simulate_sweep(np.random.default_rng(1), [0.7, 0.7, 0.75, 0.85], 162)
    adjusted = max_t(scores, 0, resamples=20_000)
    alone = [
        mcnemar_exact(int((row > scores[0]).sum()), int((row < scores[0]).sum())) for row in scores[1:]
    ]  # fmt: skip
    assert (adjusted[1:] >= np.array(alone) - 0.005).all()
    assert (adjusted[1:] <= np.minimum(1, 3 * np.array(alone)) + 0.005).all()


def test_candidates_without_a_differing_item_have_p_one() -> None:
    row = (np.random.default_rng(0).random(50) < 0.7).astype(float)
    assert max_t(np.stack([row, row, row]), 0).tolist() == [1.0, 1.0, 1.0]
    assert all_pairs(np.stack([row, row])).p_KK.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    found = max_t(np.stack([row, row, 1 - row]), 0)
    assert found[1] == 1.0
    assert found[2] < 0.05


def test_one_candidate_alone_is_tested_against_nobody() -> None:
    one = np.ones((1, 20))
    assert max_t(one, 0).tolist() == [1.0]
    assert all_pairs(one).p_KK.tolist() == [[1.0]]
    assert significance_groups(np.array([[False]]), np.array([0.5])) == [["a"]]


def test_all_pairs_are_symmetric_and_stricter_than_one_reference() -> None:
    scores = simulate_sweep(np.random.default_rng(2), [0.7, 0.72, 0.75, 0.8, 0.8], 400)
    pairs = all_pairs(scores, resamples=4000)
    assert (pairs.p_KK == pairs.p_KK.T).all()
    assert (np.diag(pairs.p_KK) == 1).all()
    assert (pairs.p_KK[0] >= max_t(scores, 0, resamples=4000) - 0.01).all()
    assert 0.05 / 10 * 0.8 < pairs.single_alpha < 0.05


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(DataError, match="not a number"):
        max_t(np.array([[1.0, np.nan], [0.0, 1.0]]), 0)


def equal_share(n: int, sweeps: int, resamples: int) -> float:
    """Share of sweeps of 11 equal checkpoints in which no two are told apart."""
    generator = np.random.default_rng(0)
    equal = 0
    for seed in range(sweeps):
        scores = simulate_sweep(generator, [0.77] * 11, n)
        equal += bool((all_pairs(scores, resamples=resamples, seed=seed).p_KK > 0.05).all())
    return equal / sweeps


def test_equal_checkpoints_are_called_equal_in_200_sweeps() -> None:
    assert equal_share(162, 200, 1000) >= 0.94


@pytest.mark.slow
def test_equal_checkpoints_are_called_equal_in_200_sweeps_of_many_questions() -> None:
    assert equal_share(3137, 200, 1000) >= 0.94


def test_equal_checkpoints_are_called_equal_on_many_questions() -> None:
    assert equal_share(3137, 25, 500) >= 0.92


def test_equal_candidates_on_grouped_questions_are_called_equal_only_by_whole_groups() -> None:
    generator, groups = np.random.default_rng(5), clusters(300, 10)
    grouped, alone = 0, 0
    for seed in range(100):
        scores = simulate_sweep(generator, [0.77] * 6, 300, cluster=10, alike=0.5)
        grouped += bool((all_pairs(scores, groups, resamples=500, seed=seed).p_KK > 0.05).all())
        alone += bool((all_pairs(scores, resamples=500, seed=seed).p_KK > 0.05).all())
    assert grouped >= 92
    assert alone < 80


@pytest.mark.parametrize("seed", range(5))
def test_a_gain_of_6_points_is_found_on_3137_questions(seed: int) -> None:
    scores = simulate_sweep(np.random.default_rng(seed), [0.77] * 7 + [0.83] * 4, 3137)
    adjusted = max_t(scores, 0)
    assert (adjusted[7:] < 0.05).all()
    assert (adjusted[1:7] > 0.05).all()
    pairs = all_pairs(scores).p_KK
    assert (pairs[:7, 7:] < 0.05).all()
    letters = significance_groups(pairs <= 0.05, scores.mean(axis=1))
    assert letters == [["b"]] * 7 + [["a"]] * 4


def test_22_candidates_on_3137_questions_take_under_2_seconds() -> None:
    scores = simulate_sweep(np.random.default_rng(0), [0.77] * 22, 3137)
    began = time.process_time()
    max_t(scores, 0, resamples=2000)
    assert time.process_time() - began < 2


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_holm_is_that_of_statsmodels(p_values: list[float]) -> None:
    with patch("gc.collect"):  # multipletests calls it each time: 0.6 s where the modules of all tests are loaded
        expected = multipletests(p_values, method="holm")[1].tolist()
    assert holm(p_values) == pytest.approx(expected)


@given(st.integers(1, 7).flatmap(lambda k: st.tuples(st.just(k), st.sets(st.integers(0, k * k - 1)))))
@settings(max_examples=150, deadline=None)
def test_two_share_a_letter_exactly_where_they_are_not_told_apart(drawn: tuple[int, set[int]]) -> None:
    count, marked = drawn
    different = np.zeros((count, count), dtype=bool)
    for place in marked:
        if place // count != place % count:
            different[place // count, place % count] = different[place % count, place // count] = True
    letters = significance_groups(different, np.linspace(0, 1, count))
    for first, second in itertools.combinations(range(count), 2):
        assert bool(set(letters[first]) & set(letters[second])) != different[first, second]
    assert all(letters)
    assert "a" in letters[-1]


def test_the_27th_letter_is_aa() -> None:
    different = ~np.eye(28, dtype=bool)
    letters = significance_groups(different, np.arange(28)[::-1])
    assert letters[0] == ["a"]
    assert letters[25:] == [["z"], ["aa"], ["ab"]]


def test_the_band_holds_all_accuracies_at_once() -> None:
    generator, accuracies = np.random.default_rng(3), np.linspace(0.6, 0.85, 11)
    band, alone = 0, 0
    for seed in range(200):
        scores = simulate_sweep(generator, accuracies.tolist(), 162)
        ends = simultaneous_band(scores, resamples=500, seed=seed)
        band += bool(((ends[:, 0] <= accuracies) & (accuracies <= ends[:, 1])).all())
        single = np.array([accuracy_interval(row)["ci"] for row in scores])
        alone += bool(((single[:, 0] <= accuracies) & (accuracies <= single[:, 1])).all())
    assert band >= 184
    assert alone < band


def test_the_band_widens_with_groups_and_stays_between_0_and_1() -> None:
    scores = simulate_sweep(np.random.default_rng(4), [0.7, 0.75], 300, cluster=10)
    scores = np.vstack([scores, np.ones(300)])
    alone, grouped = simultaneous_band(scores), simultaneous_band(scores, clusters(300, 10))
    assert (np.ptp(grouped, axis=1) > np.ptp(alone, axis=1)).all()
    assert grouped.min() >= 0
    assert grouped[2, 1] == 1.0
    assert np.ptp(simultaneous_band(np.ones((2, 40))), axis=1).min() > 0.05
