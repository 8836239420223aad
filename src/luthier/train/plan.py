"""The arithmetic of a run, known before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass

from luthier.recipe_train import TrainConfig


@dataclass(frozen=True)
class Plan:
    """How many optimizer steps there are, in how many passes over the rows."""

    rows: int
    steps_per_epoch: int
    steps: int
    epochs: int
    warmup_steps: int


def make_plan(rows: int, train: TrainConfig) -> Plan:
    """`max_steps` wins over `epochs`; a part of an epoch is rounded up to whole steps."""
    per_epoch = math.ceil(rows / train.batch_size)
    steps = train.max_steps or math.ceil(train.epochs * per_epoch)
    warmup = train.warmup_steps or round(train.warmup_ratio * steps)
    return Plan(rows, per_epoch, steps, math.ceil(steps / per_epoch), min(warmup, steps))
