"""Two candidates on the same items, beside scipy and statsmodels."""

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from luthier.errors import DataError
from luthier.outcome.statistics import (
    max_t,
    mcnemar_exact,
    paired_accuracy,
    paired_difference,
    paired_t,
)


@given(st.integers(0, 60), st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_mcnemar_is_that_of_statsmodels(wins: int, losses: int) -> None:
    expected = mcnemar([[1, wins], [losses, 1]], exact=True).pvalue if wins + losses else 1.0
    assert mcnemar_exact(wins, losses) == pytest.approx(expected, abs=1e-12)


def test_three_questions_are_never_significant() -> None:
    assert mcnemar_exact(3, 0) == 0.25
    assert mcnemar_exact(11, 8) == pytest.approx(0.65, abs=0.005)
    for discordance, p in ((0.05, 5e-6), (0.10, 0.0013), (0.20, 0.023), (0.30, 0.063)):
        discordant = round(3137 * discordance / 2) * 2
        assert mcnemar_exact((discordant + 58) // 2, (discordant - 58) // 2) == pytest.approx(p, rel=0.3)


def test_the_sign_flip_test_of_one_pair_is_mcnemar() -> None:
    a, b = np.ones((2, 200))
    a[:9], b[9:33] = 0, 0
    flipped = max_t(np.stack([a, b]), 1, resamples=20_000)[0]
    assert flipped == pytest.approx(mcnemar_exact(24, 9), rel=0.15)


def test_a_pair_of_accuracies_counts_wins_and_agrees_with_itself() -> None:
    for wins, losses, n in ((0, 0, 162), (5, 0, 162), (6, 0, 162), (24, 9, 200), (9, 24, 200), (30, 28, 3137)):
        a, b = np.ones((2, n))
        b[:wins], a[wins : wins + losses] = 0, 0
        pair = paired_accuracy(a, b)
        assert (pair["wins"], pair["losses"], pair["n"]) == (wins, losses, n)
        assert pair["value"] == pytest.approx((wins - losses) / n)
        assert pair["ci"][0] < pair["value"] < pair["ci"][1]
        assert (pair["p"] <= 0.05) == (not pair["ci"][0] <= 0 <= pair["ci"][1])


def test_the_interval_of_a_difference_covers_at_few_discordant_items() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        wins, losses, both = rng.multinomial(162, [0.03, 0.01, 0.96])
        a, b = np.ones((2, 162))
        b[:wins], a[wins : wins + losses] = 0, 0
        low, high = paired_accuracy(a, b)["ci"]
        covered += low <= 0.02 <= high
        assert wins + losses + both == 162
    assert covered >= 940


def test_the_paired_bootstrap_is_that_of_scipy() -> None:
    rng = np.random.default_rng(1)
    a = (rng.random(400) < 0.8).astype(float)
    b = np.where(rng.random(400) < 0.8, a, 1 - a)
    ours = paired_difference(a, b, resamples=4000)
    theirs = stats.bootstrap(
        (a, b), lambda x, y, axis: x.mean(axis) - y.mean(axis), paired=True, n_resamples=4000, method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    assert ours["ci"] == pytest.approx(list(theirs), abs=0.01)
    assert ours["value"] == pytest.approx(a.mean() - b.mean())


def test_groups_widen_the_difference_and_its_p() -> None:
    rng = np.random.default_rng(4)
    a = np.repeat((rng.random(40) < 0.8).astype(float), 5)
    b = np.repeat((rng.random(40) < 0.6).astype(float), 5)
    groups = np.repeat([str(place) for place in range(40)], 5).tolist()
    alone, grouped = paired_accuracy(a, b), paired_accuracy(a, b, groups)
    assert alone["value"] == grouped["value"]
    assert np.ptp(grouped["ci"]) > 1.8 * np.ptp(alone["ci"])
    assert grouped["p"] > 10 * alone["p"]
    few = mcnemar_exact(grouped["wins"] // 5, grouped["losses"] // 5)
    assert grouped["p"] == pytest.approx(few, rel=0.3, abs=0.01)


def test_the_t_test_is_that_of_scipy() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.gamma(2.0, size=(2, 162))
    ours, theirs = paired_t(a, b), stats.ttest_rel(a, b)
    assert ours["p"] == pytest.approx(theirs.pvalue, rel=1e-9)
    assert ours["ci"] == pytest.approx(list(theirs.confidence_interval(0.95)), rel=1e-9)


def test_the_t_test_over_groups_is_the_cluster_robust_one_of_statsmodels() -> None:
    rng = np.random.default_rng(6)
    members = rng.integers(25, size=200)
    a, b = rng.gamma(2.0, size=(2, 200)) + rng.normal(size=25)[members] * [[1], [0]]
    ours = paired_t(a, b, [f"page {place}" for place in members])
    theirs = sm.OLS(a - b, np.ones(200)).fit(cov_type="cluster", cov_kwds={"groups": members}, use_t=True)
    assert ours["value"] == pytest.approx(theirs.params[0])
    assert ours["p"] == pytest.approx(theirs.pvalues[0], rel=1e-9)
    assert ours["ci"] == pytest.approx(theirs.conf_int()[0].tolist(), rel=1e-9)


def test_equal_losses_are_equal_and_a_constant_gain_is_sure() -> None:
    losses = np.random.default_rng(7).integers(0, 9, 30) / 4
    assert paired_t(losses, losses)["p"] == 1.0
    assert paired_t(losses + 1, losses)["p"] == 0.0


def test_log_loss_sees_a_gain_that_accuracy_misses() -> None:
    rng = np.random.default_rng(8)
    seen = {"accuracy": 0, "log_loss": 0}
    for _ in range(100):
        margins = rng.normal(1.0, 1.2, 162)
        moved = margins + 0.1 + rng.normal(0, 0.4, 162)
        seen["accuracy"] += paired_accuracy((moved > 0) * 1.0, (margins > 0) * 1.0)["p"] <= 0.05
        seen["log_loss"] += paired_t(np.logaddexp(0, -moved), np.logaddexp(0, -margins))["p"] <= 0.05
    assert seen["log_loss"] > 2 * seen["accuracy"]


def test_other_items_are_refused() -> None:
    with pytest.raises(DataError, match="same items"):
        paired_accuracy(np.ones(3), np.ones(4))
    with pytest.raises(DataError, match="t-test"):
        paired_t(np.ones(1), np.zeros(1))
