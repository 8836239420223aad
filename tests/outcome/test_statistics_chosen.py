"""The choice among checkpoints, and what the chosen one's score is worth: by simulation."""

import numpy as np
import pytest

from luthier.errors import DataError
from luthier.outcome.statistics import accuracy_interval, earliest_equal, max_t, selection_corrected
from support.sweeps import clusters, simulate_sweep


def test_of_equal_checkpoints_the_first_is_kept() -> None:
    generator = np.random.default_rng(0)
    first = [
        earliest_equal(simulate_sweep(generator, [0.77] * 11, 162), range(11), resamples=500, seed=seed) == 0
        for seed in range(100)
    ]
    assert np.mean(first) >= 0.94


def test_a_test_against_the_best_as_if_named_beforehand_would_err() -> None:
    generator, wrong = np.random.default_rng(0), 0
    for seed in range(100):
        scores = simulate_sweep(generator, [0.77] * 22, 162)
        wrong += bool((max_t(scores, int(scores.mean(axis=1).argmax()), resamples=500, seed=seed) <= 0.05).any())
    assert wrong > 8


def test_a_real_gain_is_waited_for_and_what_follows_it_is_not() -> None:
    scores = simulate_sweep(np.random.default_rng(1), [0.70, 0.77, 0.83, 0.83, 0.83], 3137)
    assert earliest_equal(scores, [50, 100, 150, 200, 250]) == 2
    shuffled = [4, 2, 0, 3, 1]
    assert shuffled[earliest_equal(scores[shuffled], [250, 150, 50, 200, 100])] == 2


def test_one_checkpoint_is_the_chosen_one_and_steps_must_fit() -> None:
    assert earliest_equal(np.ones((1, 9)), [7]) == 0
    with pytest.raises(DataError, match="steps"):
        earliest_equal(np.ones((2, 9)), [7])


def test_the_winner_of_22_equal_checkpoints_is_corrected_to_the_truth() -> None:
    generator, raw, corrected, covered = np.random.default_rng(2), [], [], 0
    for seed in range(200):
        scores = simulate_sweep(generator, [0.77] * 22, 162)
        found = selection_corrected(scores, resamples=300, seed=seed)
        raw.append(scores.mean(axis=1).max() - 0.77)
        corrected.append(found["value"] - 0.77)
        covered += found["ci"][0] <= 0.77 <= found["ci"][1]
    assert np.mean(raw) > 0.025
    assert abs(np.mean(corrected)) < 0.01
    assert covered >= 184


def test_a_true_winner_keeps_its_score() -> None:
    scores = simulate_sweep(np.random.default_rng(3), [0.7] * 10 + [0.8], 3137)
    found = selection_corrected(scores)
    assert found["value"] == pytest.approx(scores[10].mean(), abs=0.002)
    assert found["ci"] == pytest.approx(accuracy_interval(scores[10])["ci"], abs=0.003)


def test_one_candidate_needs_no_correction() -> None:
    row = simulate_sweep(np.random.default_rng(4), [0.7], 162)
    found, plain = selection_corrected(row), accuracy_interval(row[0])
    assert found["value"] == pytest.approx(plain["value"])
    assert found["ci"] == pytest.approx(plain["ci"])


def test_groups_are_left_out_whole() -> None:
    scores = simulate_sweep(np.random.default_rng(5), [0.7] * 6, 300, cluster=10, alike=0.5)
    alone, grouped = selection_corrected(scores), selection_corrected(scores, clusters(300, 10))
    assert np.ptp(grouped["ci"]) > 1.3 * np.ptp(alone["ci"])
    assert selection_corrected(np.ones((3, 30)), clusters(30, 10))["value"] == 1.0


def test_too_few_items_are_refused() -> None:
    with pytest.raises(DataError, match="left out"):
        selection_corrected(np.ones((2, 1)))
