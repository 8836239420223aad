"""Schedules as pure functions of the step, beside transformers' own; what must hold of every schedule."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_scheduler

from luthier.recipe_train import SCHEDULES, TrainConfig
from luthier.train.plan import Plan
from luthier.train.schedules import schedule_factor

THEIRS = {
    "linear": ("linear", {}),
    "cosine": ("cosine", {}),
    "constant": ("constant_with_warmup", {}),
    "cosine_with_restarts": ("cosine_with_restarts", {"num_cycles": 3}),
    "warmup_stable_decay": ("warmup_stable_decay", {"num_decay_steps": 10, "decay_type": "linear"}),
}


def plan(steps: int, warmup: int = 0) -> Plan:
    return Plan(rows=steps, steps_per_epoch=steps, steps=steps, epochs=1, warmup_steps=warmup)


def factors(steps: int, warmup: int = 0, **settings) -> list[float]:
    return [schedule_factor(s, plan(steps, warmup), TrainConfig(**settings)) for s in range(1, steps + 1)]


def theirs(name: str, steps: int, warmup: int, **settings) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(
        name, optimizer, num_warmup_steps=warmup, num_training_steps=steps, scheduler_specific_kwargs=settings
    )
    return [scheduler.lr_lambdas[0](step) for step in range(steps + 1)]


@pytest.mark.parametrize("name", SCHEDULES)
def test_after_warm_up_the_schedule_is_that_of_transformers_one_step_earlier(name):
    known, settings = THEIRS[name]
    reference = theirs(known, 40, 8, **settings)
    ours = factors(40, 8, schedule=name, schedule_cycles=3, decay_ratio=0.25)
    assert ours[8:] == pytest.approx(reference[8:40], abs=1e-12)
    assert ours[:8] == pytest.approx(reference[1:9], abs=1e-12)  # our first step is not wasted on a rate of 0


@pytest.mark.parametrize(
    ("name", "known"), [("cosine", "cosine_with_min_lr"), ("warmup_stable_decay", "warmup_stable_decay")]
)
def test_the_lowest_rate_is_that_of_transformers(name, known):
    more = {"num_decay_steps": 10, "decay_type": "linear", "min_lr_ratio": 0.1}
    reference = theirs(known, 40, 0, **(more if name == "warmup_stable_decay" else {"min_lr_rate": 0.1}))
    ours = factors(40, schedule=name, decay_ratio=0.25, minimum_rate_ratio=0.1)
    assert ours == pytest.approx(reference[:40], abs=1e-12)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (7, 0), (40, 8), (97, 5)])
def test_linear_cosine_and_constant_keep_their_bits(steps, warmup):
    """The formulas of the first release: figures of the quickstart depend on them."""
    for step in range(1, steps + 1):
        progress = (step - 1 - warmup) / max(1, steps - warmup)
        before = {"linear": 1.0 - progress, "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)), "constant": 1.0}
        for name, value in before.items():
            found = schedule_factor(step, plan(steps, warmup), TrainConfig(schedule=name))
            assert found == (step / warmup if step <= warmup else value)


def test_restarts_come_back_to_the_full_rate_on_the_very_step():
    found = factors(49 * 7, schedule="cosine_with_restarts", schedule_cycles=49)
    assert [step for step, factor in enumerate(found) if factor == 1.0] == list(range(0, 49 * 7, 7))


def test_stable_stays_and_falls_only_in_the_last_share_of_the_steps():
    found = factors(50, 5, schedule="warmup_stable_decay", decay_ratio=0.2, minimum_rate_ratio=0.5)
    assert found[4:41] == [1.0] * 37
    assert found[40:] == pytest.approx([1.0 - 0.05 * k for k in range(10)])


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (5, 5), (2, 1)])
def test_tiny_runs_have_a_rate(name, steps, warmup):
    found = factors(steps, warmup, schedule=name)
    assert max(found) == 1.0
    assert min(found) > 0.0


def test_a_decay_as_long_as_the_run_begins_after_the_warm_up():
    found = factors(10, 4, schedule="warmup_stable_decay", decay_ratio=1.0)
    assert found == pytest.approx(factors(10, 4, schedule="linear"), abs=1e-12)


@given(
    name=st.sampled_from(SCHEDULES),
    steps=st.integers(1, 300),
    data=st.data(),
    cycles=st.integers(1, 12),
    decay=st.floats(0.01, 1.0),
    floor=st.floats(0.0, 0.99),
)
def test_every_schedule_stays_in_bounds_reaches_one_and_falls_where_it_should(name, steps, data, cycles, decay, floor):
    warmup = data.draw(st.integers(0, steps))
    settings = {"schedule": name, "schedule_cycles": cycles, "decay_ratio": decay, "minimum_rate_ratio": floor}
    found = factors(steps, warmup, **settings)
    assert all(0.0 < factor <= 1.0 for factor in found[:warmup])
    assert all(floor * (1 - 1e-12) <= factor <= 1.0 for factor in found[warmup:])
    assert max(found) == 1.0
    assert all(a < b for a, b in pairwise(found[:warmup]))
    if name != "cosine_with_restarts":
        assert all(a >= b for a, b in pairwise(found[warmup:]))
