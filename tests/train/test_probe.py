"""How long a run takes, from three steps."""

from __future__ import annotations

import time

import pytest

from luthier.train.probe import TimeEstimate, probe, time_estimate


def test_a_large_a_middling_and_a_small_pass_are_tried_after_a_warm_up() -> None:
    taken: list[int] = []

    def step(number: int) -> int:
        taken.append(number)
        time.sleep(0.2 if len(taken) == 1 else 0.01)
        return 100 * number

    found = probe(step, 101)
    assert taken == [10, 90, 50, 10]
    assert [tokens for tokens, _ in found] == [9000, 5000, 1000]
    assert all(0.01 <= seconds < 0.15 for _, seconds in found)


def test_a_run_of_one_pass_is_probed_too() -> None:
    assert [tokens for tokens, _ in probe(lambda number: number + 7, 1)] == [7, 7, 7]


def test_the_estimate_is_the_rate_of_all_steps_and_its_spread_that_of_the_extremes() -> None:
    found = time_estimate([(1000, 2.0), (500, 1.0), (100, 1.0)], 16_000)
    assert found.seconds == pytest.approx(16_000 * 4.0 / 1600)
    assert (found.low, found.high) == (pytest.approx(32.0), pytest.approx(160.0))


def test_equal_rates_leave_no_spread() -> None:
    found = time_estimate([(100, 1.0), (200, 2.0), (400, 4.0)], 1_000)
    assert found.low == found.seconds == found.high == pytest.approx(10.0)


@pytest.mark.parametrize(("seconds", "words"), [(3.21, "3.2 s"), (42, "42 s"), (600, "10 min"), (9000, "2.5 h")])
def test_the_time_is_said_in_plain_units(seconds: float, words: str) -> None:
    assert TimeEstimate(seconds, 0, 1e6).line().startswith(f"about {words} (")
