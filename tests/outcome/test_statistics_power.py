"""Planning figures, beside statsmodels, the tables they come from, and simulation."""

import numpy as np
import pytest
from scipy.stats import norm
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import power_proportions_2indep

from luthier.errors import RequestError
from luthier.outcome.statistics import (
    mcnemar_exact,
    minimum_detectable_effect,
    minimum_detectable_effect_unpaired,
    more_questions_sentence,
    questions_needed,
    questions_needed_unpaired,
    smallest_gap,
)

FIRST, SECOND = 124 / 162, 127 / 162


def test_the_headline_pair_needs_thousands_of_questions() -> None:
    assert questions_needed_unpaired(FIRST, SECOND) == 7989
    assert questions_needed_unpaired(FIRST, SECOND, power=0.9) == pytest.approx(10_695, abs=1)


@pytest.mark.parametrize(
    ("discordance", "at_80", "at_90"), [(0.05, 1143, 1528), (0.1, 2287, 3060), (0.2, 4576, 6124), (0.3, 6865, 9188)]
)
def test_pairing_needs_as_many_as_the_discordance_asks(discordance: float, at_80: int, at_90: int) -> None:
    gap = SECOND - FIRST
    assert questions_needed(gap, discordance) == pytest.approx(at_80, abs=1)
    assert questions_needed(-gap, discordance, power=0.9) == pytest.approx(at_90, abs=1)


def test_the_unpaired_number_has_the_power_that_statsmodels_finds() -> None:
    n = questions_needed_unpaired(FIRST, SECOND)
    found = power_proportions_2indep(SECOND - FIRST, FIRST, n, return_results=False)
    assert found == pytest.approx(0.8, abs=0.002)


def test_the_smallest_effects_of_the_table() -> None:
    assert minimum_detectable_effect_unpaired(162, 0.75) == pytest.approx(0.135, abs=5e-4)
    assert minimum_detectable_effect_unpaired(3137, 0.75) == pytest.approx(0.0306, abs=5e-5)
    sd = np.sqrt(0.75 * 0.25)
    theirs = NormalIndPower().solve_power(None, nobs1=162, alpha=0.05, power=0.8) * sd
    assert minimum_detectable_effect_unpaired(162, 0.75) == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("n", [162, 3137])
@pytest.mark.parametrize("discordance", [0.1, 0.3])
def test_the_detectable_effect_and_the_number_of_questions_undo_each_other(n: int, discordance: float) -> None:
    effect = minimum_detectable_effect(n, discordance)
    assert effect is not None
    assert questions_needed(effect, discordance) == pytest.approx(n, abs=1)
    gaps = np.random.default_rng(0).multinomial(
        n, [(discordance + effect) / 2, (discordance - effect) / 2, 1 - discordance], size=4000
    )
    found = np.mean([mcnemar_exact(int(wins), int(losses)) <= 0.05 for wins, losses, _ in gaps])
    assert 0.72 < found < 0.83  # the exact test keeps a little back


def test_too_little_discordance_hides_every_effect() -> None:
    assert minimum_detectable_effect(162, 0.01) is None
    assert minimum_detectable_effect(162, 0.0) is None


def test_the_smallest_gaps_that_exact_mcnemar_calls() -> None:
    assert smallest_gap(162) == pytest.approx(6 / 162)
    assert smallest_gap(162, 16) == pytest.approx(10 / 162)
    assert smallest_gap(162, 32) == pytest.approx(14 / 162)
    assert smallest_gap(162, 5) is None
    assert smallest_gap(5) is None


def test_the_sentence_names_both_and_rounds() -> None:
    text = more_questions_sentence(("step-100", "step-300"), 162, 4321)
    assert text.startswith("step-100 and step-300 cannot be told apart: about 4,300 more questions")
    assert "about 7 more" in more_questions_sentence(("a", "b"), 162, 7)
    assert "the same" in more_questions_sentence(("a", "b"), 162, None)


def test_what_has_no_answer_is_refused() -> None:
    for call in (
        lambda: questions_needed(0.0, 0.1),
        lambda: questions_needed(0.2, 0.1),
        lambda: questions_needed(0.1, 0.2, power=1.0),
        lambda: questions_needed_unpaired(0.5, 0.5),
        lambda: minimum_detectable_effect(0, 0.1),
    ):
        with pytest.raises(RequestError):
            call()
    assert norm.isf(0.025) == pytest.approx(1.96, abs=1e-3)
