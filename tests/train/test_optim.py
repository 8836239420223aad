"""Schedules as pure functions of the step, beside transformers' own; parameter groups."""

from __future__ import annotations

import pytest
import torch
from transformers import get_scheduler

from luthier.recipe_train import TrainConfig
from luthier.train.optim import make_optimizer, schedule_factor, set_rates
from luthier.train.plan import Plan, make_plan
from support.jobs import make_job, recipe


@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
def test_after_warm_up_the_schedule_is_that_of_transformers(name):
    plan = Plan(rows=100, steps_per_epoch=10, steps=40, epochs=4, warmup_steps=8)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = get_scheduler(
        "constant_with_warmup" if name == "constant" else name, optimizer, num_warmup_steps=8, num_training_steps=40
    )
    theirs = []
    for _ in range(41):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    ours = [schedule_factor(step, plan, name) for step in range(1, 41)]
    assert ours[8:] == pytest.approx(theirs[8:40], abs=1e-12)
    assert ours[:8] == pytest.approx(theirs[1:9], abs=1e-12)  # our first step is not wasted on a rate of 0


def test_restarts_come_back_to_the_full_rate():
    plan = Plan(rows=100, steps_per_epoch=10, steps=40, epochs=4, warmup_steps=0)
    rates = [schedule_factor(step, plan, "cosine_with_restarts") for step in range(1, 41)]
    assert rates[0] == rates[20] == 1.0
    assert rates[19] < 0.01


@pytest.mark.parametrize(
    ("rows", "batch", "epochs", "most", "steps"), [(10, 4, 2, 0, 6), (10, 4, 0.5, 0, 2), (10, 4, 9, 5, 5)]
)
def test_the_arithmetic_of_a_plan(rows, batch, epochs, most, steps):
    plan = make_plan(rows, TrainConfig(epochs=epochs, batch_size=batch, max_steps=most, warmup_ratio=0.5))
    assert plan.steps == steps
    assert plan.epochs * plan.steps_per_epoch >= plan.steps
    assert plan.warmup_steps == round(0.5 * steps)


def test_learned_tokens_have_their_own_rate_and_no_decay(tmp_path):
    made = recipe()
    made.train.weight_decay = 0.1
    job = make_job(tmp_path / "groups", made, rows=4)
    optimizer = make_optimizer(job.model, made.train, token_learning_rate=0.5)
    names = {id(p): n for n, p in job.model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            tokens = "trainable_tokens" in names[id(parameter)]
            assert group["base_rate"] == (0.5 if tokens else made.train.learning_rate)
            assert group["weight_decay"] == (0.0 if tokens else 0.1)
    set_rates(optimizer, 0.25)
    assert {group["lr"] for group in optimizer.param_groups} == {0.125, 0.25 * made.train.learning_rate}
