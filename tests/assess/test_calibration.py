"""Temperature scaling: finds a known temperature, is accepted when it helps and refused when it does not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.assess.calibration import calibrate, fit_calibration, fit_temperature
from luthier.assess.metrics import log_loss
from luthier.errors import DataError


def forecasts(n, temperature, seed=0):
    """p stated, y drawn from sigmoid(logit(p) / temperature), and a group for every two items."""
    generator = np.random.default_rng(seed)
    p = generator.uniform(0.03, 0.97, size=n)
    y = (generator.uniform(size=n) < calibrate(p, temperature)).astype(float)
    return p, y, [f"s{i // 2}" for i in range(n)]


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_behind_soft_labels_is_found(temperature):
    p, _, _ = forecasts(200, 1.0)
    assert fit_temperature(p, calibrate(p, temperature)) == pytest.approx(temperature, abs=1e-3)


def test_the_fit_is_the_best_on_a_grid():
    p, y, _ = forecasts(300, 2.0)
    best = log_loss(calibrate(p, fit_temperature(p, y)), y)
    assert all(best <= log_loss(calibrate(p, t), y) + 1e-9 for t in np.geomspace(0.06, 19, 60))


@settings(deadline=None)
@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=20), st.floats(0.05, 20))
def test_ranking_and_answers_are_kept(values, temperature):
    p = np.array(values)
    found = calibrate(p, temperature)
    order = np.argsort(p)
    assert (np.diff(found[order]) >= 0).all()
    assert ((found >= 0) & (found <= 1)).all()
    clear = np.abs(p - 0.5) > 1e-9
    assert ((found > 0.5) == (p > 0.5))[clear].all()


def test_temperature_one_changes_nothing():
    p = np.linspace(0.001, 0.999, 50)
    assert calibrate(p, 1.0) == pytest.approx(p)


def test_overconfident_forecasts_are_calibrated():
    p, y, groups = forecasts(400, 3.0)
    found = fit_calibration(p, y, groups)
    assert found.accepted
    assert found.n == 400
    assert found.temperature == pytest.approx(fit_temperature(p, y))
    assert 2.0 < found.temperature < 4.5
    assert found.nll_after < found.nll_before == pytest.approx(log_loss(p, y))


def test_calibrated_forecasts_are_mostly_left_alone():
    runs = [fit_calibration(*forecasts(92, 1.0, seed)) for seed in range(40)]
    # beyond one standard error lies one in six by chance; a needless temperature costs, so fewer
    assert sum(run.accepted for run in runs) <= 8
    assert all(run.temperature == 1.0 for run in runs if not run.accepted)
    # a fall within the noise is not enough
    assert any(run.nll_after < run.nll_before and not run.accepted for run in runs)


def test_one_speaker_many_times_does_not_count_as_many():
    p, y, groups = forecasts(12, 2.5, seed=5)
    single = fit_calibration(p, y, groups)
    many = fit_calibration(np.tile(p, 30), np.tile(y, 30), groups * 30)
    assert many.accepted == single.accepted
    assert many.nll_after == pytest.approx(single.nll_after, abs=1e-6)


def test_the_order_of_the_items_is_of_no_account():
    p, y, groups = forecasts(60, 2.0)
    order = np.random.default_rng(1).permutation(60)
    mixed = fit_calibration(p[order], y[order], [groups[i] for i in order])
    assert mixed.nll_after == pytest.approx(fit_calibration(p, y, groups).nll_after, abs=1e-6)


def test_what_leaves_nothing_to_judge_by_is_not_accepted():
    p, y, _ = forecasts(50, 3.0)
    alone = fit_calibration(p, y, ["s"] * 50)
    assert not alone.accepted
    assert alone.temperature == 1.0
    assert alone.nll_before == alone.nll_after
    assert fit_temperature(np.full(5, 0.5), np.array([1.0, 0, 1, 0, 0])) == 1.0


def test_one_class_stays_within_the_bounds():
    assert 0.05 <= fit_temperature(np.array([0.6, 0.7]), np.array([1.0, 1.0])) < 0.06
    assert 19 < fit_temperature(np.array([0.6, 0.7]), np.array([0.0, 0.0])) <= 20


def test_columns_that_do_not_pair_up_are_refused():
    for p, y in ([[], []], [[0.5], [1.0, 0.0]], [[1.5], [1.0]], [[0.5], [float("nan")]]):
        with pytest.raises(DataError):
            fit_temperature(p, y)
    with pytest.raises(DataError):
        fit_calibration([0.5, 0.6], [0.0, 1.0], ["a"])
    with pytest.raises(DataError):
        calibrate([0.5], 0.0)
