"""The loop: batches in, optimizer steps out, nothing else. It knows no task but a model with a loss.

A step is the unit: its loss is a sum over all of its micro-batches divided by the weight of the whole step, its
dropout is seeded by (seed, step), and it is either done and counted or not done. Resuming therefore repeats nothing
and skips nothing. One scalar is read from the device per step: the price of stopping *before* a step on NaN.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from luthier.console import progress
from luthier.errors import Interrupted, NonFiniteLoss
from luthier.files import append_jsonl
from luthier.models.batches import Batch, Micro, batches
from luthier.models.encode import Example
from luthier.models.features import FeatureStore
from luthier.models.verdict import StepWeights, VerdictModel
from luthier.recipe import TrainConfig
from luthier.records import StepRecord
from luthier.rundir import truncate_metrics
from luthier.runtime.checkpoints import Checkpoints
from luthier.runtime.devices import Devices
from luthier.runtime.interrupts import stop_requested
from luthier.train.optim import schedule_factor, set_rates
from luthier.train.plan import Plan


@dataclass
class Job:
    """Everything one training needs."""

    model: VerdictModel
    optimizer: torch.optim.Optimizer
    plan: Plan
    settings: TrainConfig
    seed: int
    micros: Sequence[Micro]
    examples: Sequence[Example]
    store: FeatureStore
    pad_id: int
    devices: Devices
    checkpoints: Checkpoints
    metrics: Path
    validate: Callable[[], float] | None = None
    resume_line: str = ""


@dataclass
class Progress:
    """Where a training stands; this is a checkpoint's state.json."""

    step: int = 0
    rows: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    loss_weight: float = 0.0
    best_step: int = 0
    best_loss: float | None = None


def train(job: Job, resume: bool = False) -> Progress:
    """Train to the plan's last step, from the newest checkpoint that verifies where `resume` is set."""
    done = _restore(job) if resume else Progress()
    left = [micro for micro in job.micros if done.step < micro.step <= job.plan.steps]
    stream = batches(left, job.examples, job.store, job.pad_id, job.settings.workers)
    steps = itertools.groupby(zip(left, stream, strict=True), key=lambda item: item[0].step)
    begun = time.monotonic() - done.seconds
    job.model.train()
    with stop_requested() as stopping:
        for step, group in progress(steps, "training", job.plan.steps - done.step):
            norm = _step(job, step, [batch for _, batch in group], done)
            done.seconds = time.monotonic() - begun
            _after_step(job, done, norm)
            if stopping():
                _save(job, done)
                raise Interrupted(f"stopped after step {step} of {job.plan.steps}; all of it is saved", job.resume_line)
    _save(job, done)
    if job.settings.select == "best" and done.best_step:
        job.checkpoints.restore(done.best_step, job.model, job.optimizer)
    return done


def _step(job: Job, step: int, group: list[Batch], done: Progress) -> torch.Tensor:
    """One optimizer step over its micro-batches. Returns the gradient norm."""
    torch.manual_seed((job.seed * 1_000_003 + step) % 2**63)
    set_rates(job.optimizer, schedule_factor(step, job.plan, job.settings.schedule))
    weights = StepWeights(
        rows=sum(batch.weight for batch in group), pairs=float(sum(len(batch.pairs) for batch in group))
    )
    loss_sum = torch.zeros((), device=job.devices.device)
    for batch in group:
        with job.devices.precision():
            loss, main = job.model.loss(batch.to(job.devices.device), weights)
        job.devices.backward(loss)
        loss_sum += main.sum.detach()
    limit = job.settings.max_grad_norm or float("inf")
    norm = torch.nn.utils.clip_grad_norm_([p for p in job.model.parameters() if p.requires_grad], limit)
    total = float(loss_sum + 0.0 * norm)
    if total != total or total in (float("inf"), float("-inf")):
        ids = [name for batch in group for name in batch.ids]
        raise NonFiniteLoss(
            f"step {step}: the loss or a gradient is not finite; rows of this step: {', '.join(ids)}",
            "lower train.learning_rate or look at these rows; the last checkpoint is untouched",
        )
    job.optimizer.step()
    job.optimizer.zero_grad(set_to_none=True)
    done.step = step
    done.rows += sum(len(batch.ids) for batch in group)
    done.tokens += sum(batch.tokens for batch in group)
    done.loss_sum += total
    done.loss_weight += weights.rows
    return norm


def _after_step(job: Job, done: Progress, norm: torch.Tensor) -> None:
    """Validation at the end of an epoch, a line of metrics and a checkpoint when they are due."""
    epoch_ends = done.step % job.plan.steps_per_epoch == 0 or done.step == job.plan.steps
    validation = None
    if epoch_ends and job.validate is not None:
        validation = job.validate()
        job.model.train()
        if done.best_loss is None or validation < done.best_loss:
            done.best_loss, done.best_step = validation, done.step
    if done.step % job.settings.log_every == 0 or done.step == 1 or epoch_ends:
        append_jsonl(
            job.metrics,
            StepRecord(
                step=done.step,
                epoch=round(done.step / job.plan.steps_per_epoch, 4),
                loss=done.loss_sum / done.loss_weight,
                learning_rate=job.settings.learning_rate * schedule_factor(done.step, job.plan, job.settings.schedule),
                grad_norm=float(norm),
                tokens=done.tokens,
                seconds=round(done.seconds, 3),
                validation_log_loss=validation,
            ).to_json(),
        )
        done.loss_sum = done.loss_weight = 0.0
    best_now = job.settings.select == "best" and done.best_step == done.step
    if done.step % job.settings.save_every == 0 or best_now:
        _save(job, done)


def _save(job: Job, done: Progress) -> None:
    keep_best = job.settings.select == "best"
    job.checkpoints.save(job.model, job.optimizer, {**vars(done), "best_step": done.best_step if keep_best else 0})


def _restore(job: Job) -> Progress:
    """Go back to the newest checkpoint that can be trusted, and cut the metrics to it."""
    step = job.checkpoints.newest()
    truncate_metrics(job.metrics, step or 0)
    return Progress(**job.checkpoints.restore(step, job.model, job.optimizer)) if step else Progress()
