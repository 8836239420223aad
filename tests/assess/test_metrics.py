"""Scores beside scikit-learn, the users' conventions at the borderline, and intervals over groups."""

from __future__ import annotations

import json
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, roc_auc_score
from sklearn.metrics import log_loss as sklearn_log_loss

from luthier.assess.metrics import (
    VerdictItems,
    accuracy,
    auroc,
    bootstrap_ci,
    brier,
    ece,
    grade_means,
    log_loss,
    verdict_scores,
)
from luthier.errors import DataError, RequestError
from luthier.recipe import Scale

SCALE = Scale(minimum=1.0, maximum=5.0, step=0.5, pass_mark=4.0)
# eleven distinct values, so that ties are common
TENTHS = st.integers(0, 10).map(lambda k: k / 10)
PAIRS = st.lists(st.tuples(TENTHS, st.integers(0, 1)), min_size=2, max_size=60)
SOFT = st.lists(st.tuples(TENTHS, st.floats(0.01, 0.99)), min_size=1, max_size=40)


def columns(pairs):
    return tuple(np.array(column, dtype=float) for column in zip(*pairs, strict=True))


def items(rows, event="rater", held_back=()):
    grade, p = zip(*rows, strict=True)
    return VerdictItems(
        [str(i) for i in range(len(rows))],
        [f"s{i}" for i in range(len(rows))],
        list(grade),
        list(p),
        list(held_back),
        event,
    )


def cohort(n=300, seed=1):
    """Grades and probabilities of n answers by n / 3 speakers, the ranking right but not perfect."""
    generator = np.random.default_rng(seed)
    ability = generator.normal(size=n)
    grade = np.clip(np.round((3.6 + 0.7 * ability) * 2) / 2, 1, 5)
    p = 1 / (1 + np.exp(-(2 * ability + generator.normal(size=n))))
    held = [(float(round(g)), float(math.ceil(g))) for g in grade + generator.normal(size=n) * 0.4]
    return VerdictItems([f"a{i}" for i in range(n)], [f"s{i // 3}" for i in range(n)], grade.tolist(), p.tolist(), held)


@settings(deadline=None)
@given(PAIRS)
def test_hard_labels_as_in_sklearn(pairs):
    p, y = columns(pairs)
    assert accuracy(p, y) == pytest.approx(float(((p > 0.5) == (y == 1)).mean()))
    assert brier(p, y) == pytest.approx(brier_score_loss(y, p, pos_label=1, labels=[0, 1]))
    clipped = np.clip(p, 1e-7, 1 - 1e-7)
    assert log_loss(p, y) == pytest.approx(sklearn_log_loss(y, clipped, labels=[0, 1]))
    if len(set(y)) == 2:
        assert auroc(p, y) == pytest.approx(roc_auc_score(y, p))
    else:
        assert auroc(p, y) is None


@settings(deadline=None)
@given(SOFT)
def test_soft_labels_are_two_weighted_copies(pairs):
    p, y = columns(pairs)
    label, twice, weight = np.repeat([1, 0], len(p)), np.tile(p, 2), np.concatenate([y, 1 - y])
    assert auroc(p, y) == pytest.approx(roc_auc_score(label, twice, sample_weight=weight))
    clipped = np.clip(twice, 1e-7, 1 - 1e-7)
    assert log_loss(p, y) == pytest.approx(sklearn_log_loss(label, clipped, sample_weight=weight))


@settings(deadline=None)
@given(PAIRS, st.randoms())
def test_calibration_error_has_no_order_and_stays_between_its_ends(pairs, random):
    p, y = columns(pairs)
    random.shuffle(pairs)
    assert ece(*columns(pairs)) == pytest.approx(ece(p, y))
    assert abs(p.mean() - y.mean()) - 1e-12 <= ece(p, y) <= np.abs(p - y).mean() + 1e-12


def test_calibration_error_by_hand():
    p = np.array([0.1, 0.2, 0.6, 0.9])
    y = np.array([0.0, 1.0, 1.0, 1.0])
    assert ece(p, y, bins=2) == pytest.approx((abs(0.3 - 1) + abs(1.5 - 2)) / 4)
    assert ece(p, y, bins=4) == pytest.approx((0.1 + 0.8 + 0.4 + 0.1) / 4)
    # three tied items have their middle in the upper half, so all three are there
    tied = ece(np.array([0.1, 0.9, 0.9, 0.9]), np.array([1.0, 1.0, 1.0, 0.0]), bins=2)
    assert tied == pytest.approx((0.9 + 0.7) / 4)
    # so a constant forecast is judged by its mean alone
    assert ece(np.full(40, 0.3), np.r_[np.ones(12), np.zeros(28)]) == pytest.approx(0.0)


def test_the_extremes_of_log_loss_are_finite():
    assert log_loss(np.array([0.0, 1.0]), np.array([1.0, 0.0])) == pytest.approx(-math.log(1e-7))


def test_means_by_grade():
    found = grade_means(np.array([0.2, 0.4, 0.9]), np.array([3.5, 3.5, 4.0]))
    assert list(found) == ["3.5", "4"]
    assert found["3.5"] == {"mean_p": pytest.approx(0.3), "n": 2}


def test_the_interval_of_a_mean_is_the_normal_one():
    values = np.random.default_rng(0).normal(size=400)
    low, high = bootstrap_ci(lambda index: float(values[index].mean()), [str(i) for i in range(400)])
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_copies_within_a_group_do_not_narrow_the_interval():
    values = np.random.default_rng(0).normal(size=50)
    single = bootstrap_ci(lambda index: float(values[index].mean()), [str(i) for i in range(50)])
    copies = np.repeat(values, 8)
    groups = [str(i) for i in range(50) for _ in range(8)]
    assert bootstrap_ci(lambda index: float(copies[index].mean()), groups) == pytest.approx(single)
    loose = bootstrap_ci(lambda index: float(copies[index].mean()), [str(i) for i in range(400)])
    assert loose[1] - loose[0] < 0.5 * (single[1] - single[0])


def test_a_single_group_has_the_interval_of_its_items():
    values = np.arange(20.0)
    one = bootstrap_ci(lambda index: float(values[index].mean()), ["s"] * 20)
    each = bootstrap_ci(lambda index: float(values[index].mean()), [f"{i:02}" for i in range(20)])
    assert one == each
    assert one[0] < one[1]


def test_groups_are_drawn_whole():
    groups = ["a", "a", "a", "b", "c", "c"]
    seen = []
    bootstrap_ci(lambda index: seen.append(np.bincount(index, minlength=6)) or 0.0, groups, resamples=50)
    for counts in seen:
        assert counts[0] == counts[1] == counts[2]
        assert counts[4] == counts[5]
        assert counts[0] + counts[3] + counts[4] == 3


def test_the_same_seed_gives_the_same_interval():
    values = np.arange(20.0)
    runs = [
        bootstrap_ci(lambda index: float(values[index].mean()), [str(i) for i in range(20)], seed=seed)
        for seed in (3, 3, 4)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_resamples_without_a_value_are_passed_over():
    assert bootstrap_ci(lambda index: None, ["a", "b"], resamples=20) is None
    y = np.array([1.0, 0.0, 0.0])
    low, high = bootstrap_ci(lambda index: auroc(np.array([0.9, 0.1, 0.2])[index], y[index]), ["a", "b", "c"])
    assert (low, high) == (1.0, 1.0)


@pytest.mark.parametrize("wrong", [{"resamples": 0}, {"level": 1.0}])
def test_an_interval_that_cannot_be_made_is_refused(wrong):
    with pytest.raises(RequestError):
        bootstrap_ci(lambda index: 0.0, ["a", "b"], **wrong)


def test_verdicts_by_hand():
    rows = [(3.0, 0.1), (3.5, 0.6), (3.5, 0.4), (4.0, 0.7), (4.0, 0.45), (5.0, 0.9)]
    held = [(), (4.0, 4.0, 3.0), (4.0,), (3.0,), (), ()]
    found = verdict_scores(items(rows, held_back=held), SCALE, resamples=50)
    assert set(found) == {
        "accuracy",
        "auroc",
        "log_loss",
        "brier",
        "ece",
        "borderline.accuracy",
        "borderline.auroc",
        "closer",
        "grades",
    }
    assert found["accuracy"]["value"] == pytest.approx(4 / 6)  # 3.5 is a fail, by the users' convention
    assert found["auroc"]["value"] == pytest.approx(8 / 9)
    assert found["borderline.accuracy"] == {"value": 0.5, "ci": found["borderline.accuracy"]["ci"], "n": 4}
    assert found["borderline.auroc"]["value"] == pytest.approx(3 / 4)
    assert found["closer"]["value"] == 0.5
    assert found["closer"]["n"] == 2
    truth = np.array([0, 0.5, 0.5, 1, 1, 1])
    p = np.array([p for _, p in rows])
    assert found["brier"]["value"] == pytest.approx(((p - truth) ** 2).mean())
    assert found["log_loss"]["value"] == pytest.approx(log_loss(p, truth))
    assert found["grades"]["3.5"] == {"mean_p": pytest.approx(0.5), "n": 2}
    json.dumps(found, allow_nan=False)


def test_the_event_decides_what_probabilities_are_held_against():
    rows = [(3.5, 0.5), (4.0, 1.0), (3.0, 0.0)]
    assert verdict_scores(items(rows), SCALE, resamples=20)["brier"]["value"] == 0.0
    panel = verdict_scores(items(rows, "panel"), SCALE, resamples=20)
    assert panel["brier"]["value"] == pytest.approx(0.25 / 3)


def test_an_even_split_of_raters_has_no_closer_side():
    found = verdict_scores(items([(3.5, 0.9), (4.0, 0.9)], held_back=[(3.0, 4.0), ()]), SCALE, resamples=20)
    assert "closer" not in found


def test_scores_of_one_class_are_left_out():
    found = verdict_scores(items([(4.5, 0.9), (5.0, 0.4)]), SCALE, resamples=20)
    assert set(found) == {"accuracy", "log_loss", "brier", "ece", "grades"}


def test_an_unreadable_verdict_is_wrong_on_either_side():
    columns = items([(3.0, 0.5), (4.0, 0.5), (2.0, 0.1)])
    columns.readable = [False, False, True]
    found = verdict_scores(columns, SCALE, resamples=20)
    assert found["accuracy"]["value"] == pytest.approx(1 / 3)
    assert found["accuracy"]["n"] == 3


def test_columns_that_cannot_be_scored_are_refused():
    with pytest.raises(DataError, match="columns"):
        verdict_scores(VerdictItems(["a", "b"], ["a"], [3.0, 4.0], [0.1, 0.2]), SCALE)
    with pytest.raises(DataError, match="more than once"):
        verdict_scores(VerdictItems(["a", "a"], ["a", "b"], [3.0, 4.0], [0.1, 0.2]), SCALE)
    with pytest.raises(DataError):
        verdict_scores(items([(3.0, float("nan")), (4.0, 0.2)]), SCALE)
    with pytest.raises(DataError):
        verdict_scores(VerdictItems([], [], [], []), SCALE)


def test_three_hundred_items_are_scored_within_three_seconds():
    start = time.process_time()
    found = verdict_scores(cohort(), SCALE)
    assert time.process_time() - start < 3.0
    for name, value in found.items():
        if name not in ("grades", "ece"):  # the resampled calibration error is biased upwards, as documented
            assert value["ci"][0] <= value["value"] <= value["ci"][1]
