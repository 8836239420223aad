"""The learning rate as a pure function of the optimizer step. Knows no optimizer, and keeps no state to restore."""

from __future__ import annotations

import math

from luthier.recipe_train import TrainConfig
from luthier.train.plan import Plan


def schedule_factor(step: int, plan: Plan, train: TrainConfig) -> float:
    """The factor in 0..1 on the learning rate of optimizer step `step` (1 .. plan.steps).

    Warm-up is linear and ends at 1, so no step is wasted on a rate of 0. After it the factor is that of transformers
    one step earlier, as its schedulers count from 0. All but constant run down to `train.minimum_rate_ratio`, which
    the step after the last one would have.
    """
    if step <= plan.warmup_steps:
        return step / plan.warmup_steps
    if train.schedule == "constant":
        return 1.0
    floor = train.minimum_rate_ratio
    return floor + (1.0 - floor) * _fall(step - 1 - plan.warmup_steps, plan, train)


def _fall(done: int, plan: Plan, train: TrainConfig) -> float:
    """From 1 to 0 over the steps after warm-up; `done` of them lie behind."""
    length = max(1, plan.steps - plan.warmup_steps)
    if train.schedule == "linear":
        return 1.0 - done / length
    if train.schedule == "cosine":
        return _half_cosine(done / length)
    if train.schedule == "cosine_with_restarts":
        # In whole numbers: (1 / 49) * 49 % 1.0 is just below 1, and the restart would come a step late.
        return _half_cosine(done * train.schedule_cycles % length / length)
    decay = min(length, round(train.decay_ratio * plan.steps))
    return 1.0 if done < length - decay else (length - done) / decay


def _half_cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))
