"""The loop: batches in, optimizer steps out, nothing else. It knows no task but a learner with a loss.

A step is the unit: its rows follow from its number, its loss is a sum over all of its forward passes divided by the
weight of the whole step, its dropout is seeded by (seed, step), and it is either done and counted or not done.
Resuming therefore repeats nothing and skips nothing. Between looks (log, save, validation) no tensor is read from the
device: that a loss or gradient is not finite is noticed there, and the optimizer skips from that step on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from luthier.console import say, training_bar
from luthier.errors import Interrupted, LuthierError, NonFiniteLoss
from luthier.files import append_jsonl
from luthier.models.feeds import Feed, stream
from luthier.models.learner import AnyBatch, Learner
from luthier.recipe_train import TrainConfig
from luthier.records import StepRecord
from luthier.rundir import truncate_metrics
from luthier.runtime.checkpoints import Checkpoints
from luthier.runtime.devices import Devices
from luthier.runtime.interrupts import stop_requested
from luthier.runtime.memory import used_memory
from luthier.train.optim import Guard, clip, set_rates
from luthier.train.plan import Plan
from luthier.train.schedules import schedule_factor

_EVERY_TENSOR_BY = 3
"""Steps after which each trainable tensor should have had a gradient (lora_A has none at the first)."""


@dataclass
class Job:
    """Everything one training needs."""

    learner: Learner
    optimizer: torch.optim.Optimizer
    plan: Plan
    settings: TrainConfig
    seed: int
    feed: Feed
    devices: Devices
    checkpoints: Checkpoints
    metrics: Path
    validate: Callable[[], float] | None = None
    mirror: Callable[[StepRecord], None] | None = None
    """Told every line of metrics: trackers."""
    examine: Callable[[int], bool] | None = None
    """Called with the step that a run begins from (0: none), and with each that was just saved; true ends the training.
    What it knows of later steps than that is of weights that are no more."""
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
    looks_without_best: int = 0
    stopped: bool = False
    """Early stopping ended the training at `step`."""
    halvings: int = 0
    """How often the forward passes were halved because memory ran out."""
    scale: dict[str, Any] = field(default_factory=dict)
    """The loss scale of float16."""
    silent: list[str] = field(default_factory=list)
    """Trainable tensors that had no gradient in the first steps."""


@dataclass
class _Step:
    """What is known of a step before anything is read from the device."""

    step: int
    ids: list[str]
    weight: float
    loss: torch.Tensor
    """The sum over the step's targets; NaN where it or the gradient is not finite."""
    norm: torch.Tensor


def train(job: Job, resume: bool = False, *, start: Progress | None = None, until: int = 0) -> Progress:
    """Train to the plan's last step, from the newest checkpoint that verifies where `resume` is set.

    `start` is where learner and optimizer stand already, `until` an earlier last step: for proving a resume.

    Raises NonFiniteLoss with the rows of the first step whose loss or gradient is not finite; the weights are then as
    they were before that step. Raises Interrupted when a stop was asked for, after the step in hand was saved.
    """
    done = start or (_restore(job) if resume else Progress())
    if done.step:
        job.devices.precision.load(done.scale)
    training = _Training(job, done, min(job.plan.steps, until or job.plan.steps))
    training.run()
    if job.settings.select == "best" and done.best_step and not until:
        job.checkpoints.restore(done.best_step, job.learner, job.optimizer)
    return done


class _Training:
    def __init__(self, job: Job, done: Progress, last: int) -> None:
        self.job, self.done, self.last = job, done, last
        self.parameters = [p for _, p in job.learner.tuned()]
        self.guard = Guard(job.devices.device)
        self.unread: list[_Step] = []
        self.had_gradient: list[torch.Tensor] = []
        self.best_before = done.best_step, done.best_loss
        self.tokens_shown = done.tokens
        self.begun = time.monotonic() - done.seconds

    def run(self) -> None:
        """All steps that are left; the state is saved after the last one."""
        job, done = self.job, self.done
        self._examine()  # a run may have been cut between a save and its examination
        job.learner.train()
        with stop_requested() as stopping, training_bar(job.plan.steps, done.step) as self.bar:
            while done.step < self.last and not done.stopped:
                steps = stream(job.feed, done.step + 1, self.last, done.halvings, job.settings.workers)
                if not self._take(steps, stopping):
                    self._halve()
        self._save_all(must=True)
        self._examine()

    def _take(self, steps: Iterable[Sequence[AnyBatch]], stopping: Callable[[], bool]) -> bool:
        """Steps until there are no more, or none are wanted; False where memory ran out in one."""
        job, done = self.job, self.done
        for group in steps:
            try:
                loss_sum = self._gradients(group)
            except torch.OutOfMemoryError:
                return False  # the error holds on to what did not fit: it must be gone before the next try
            self._step(group, loss_sum)
            self._after_step()
            if job.devices.any(stopping()):
                self._save_all(must=True)
                raise Interrupted(
                    f"stopped after step {done.step} of {job.plan.steps}; all of it is saved", job.resume_line
                )
            if done.stopped:
                break
        return True

    def _gradients(self, whole: Sequence[AnyBatch]) -> torch.Tensor:
        """Add up the gradients of a step over its forward passes. Returns the loss's sum, () on the device."""
        job, step = self.job, self.done.step + 1
        torch.manual_seed((job.seed * 1_000_003 + step + (job.devices.rank << 48)) % 2**63)
        weights = job.learner.step_weights(whole)
        device, precision = job.devices.device, job.devices.precision
        loss_sum = torch.zeros((), device=device)
        for batch in job.devices.share(whole):
            with precision.autocast():
                share, main = job.learner.loss(batch.to(device), weights)
            precision.scale(share).backward()
            loss_sum += main.sum.detach()
        if job.devices.world > 1:
            for p in self.parameters:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            job.devices.add_up([loss_sum, *(p.grad for p in self.parameters if p.grad is not None)])
        return loss_sum

    def _step(self, whole: Sequence[AnyBatch], loss_sum: torch.Tensor) -> None:
        """One optimizer step on the gradients that are there."""
        job, step = self.job, self.done.step + 1
        if step <= _EVERY_TENSOR_BY:
            self._note_gradients()
        set_rates(job.optimizer, schedule_factor(step, job.plan, job.settings))
        job.devices.precision.unscale(job.optimizer)
        norm = clip(self.parameters, job.settings.max_grad_norm)
        try:
            loss = self.guard.step(job.optimizer, loss_sum, norm, job.devices.precision)
        except torch.OutOfMemoryError as error:  # part of the weights may have moved: nothing can be tried again
            raise LuthierError(
                f"step {step}: memory ran out in the optimizer; go on from the last checkpoint with {job.resume_line}",
                "close what else uses this memory, or begin anew with train.optimizer: adamw_8bit or a smaller "
                "model.lora.r",
            ) from error
        job.optimizer.zero_grad(set_to_none=True)
        ids = [name for batch in whole for name in batch.ids]
        self.unread.append(_Step(step, ids, job.learner.step_weights(whole).main, loss, norm))
        self.done.step = step
        self.done.rows += len(ids)
        self.done.tokens += sum(batch.tokens for batch in whole)

    def _after_step(self) -> None:
        """Validation, a line of metrics and a checkpoint, each when it is due."""
        job, done, settings = self.job, self.done, self.job.settings
        done.seconds = time.monotonic() - self.begun
        last = done.step == job.plan.steps
        epoch_ends = last or job.feed.ends_epoch(done.step)
        every = settings.validate_every
        validates = job.validate is not None and (done.step % every == 0 or last if every else epoch_ends)
        logs = done.step % settings.log_every == 0 or done.step == 1 or epoch_ends or validates
        saves = job.checkpoints.due(done.step, time.monotonic())
        tokens, loss = done.tokens - self.tokens_shown, None
        if logs:
            norm = self._read()
            loss = self._log(norm, self._validate() if validates else None)
        if (saves or (settings.select == "best" and done.best_step == done.step)) and self._save_all():
            self._examine()
        on_gpu = job.devices.device.type == "cuda"
        self.bar.step(loss, tokens, used_memory(job.devices.device) if on_gpu and logs else None)
        self.tokens_shown = done.tokens

    def _read(self) -> float:
        """Read the losses of the steps since the last look, in one transfer. Returns the last gradient norm."""
        if not self.unread:
            return 0.0
        values = torch.stack([torch.stack([one.loss, one.norm]).double() for one in self.unread]).tolist()
        for one, (loss, _) in zip(self.unread, values, strict=True):
            if loss != loss or loss in (float("inf"), float("-inf")):
                raise NonFiniteLoss(
                    f"step {one.step}: the loss or a gradient is not finite; rows of this step: {', '.join(one.ids)}",
                    "lower train.learning_rate or look at these rows; weights and checkpoints are as before this step",
                )
            self.done.loss_sum += loss
            self.done.loss_weight += one.weight
        self.unread.clear()
        self._judge_gradients()
        return float(values[-1][1])

    def _validate(self) -> float | None:
        job, done = self.job, self.done
        assert job.validate is not None
        job.learner.eval()
        found = job.validate()
        job.learner.train()
        self.best_before = done.best_step, done.best_loss
        if done.best_loss is None or found < done.best_loss:
            done.best_loss, done.best_step, done.looks_without_best = found, done.step, 0
        else:
            done.looks_without_best += 1
            patience = job.settings.early_stopping_patience
            if patience and job.settings.select != "exam" and done.looks_without_best >= patience:
                done.stopped = True
                say(f"step {done.step}: {patience} looks without a lower validation loss than at step {done.best_step}")
        return found

    def _examine(self) -> None:
        """Have the model as it stands examined; what was examined before is not asked again."""
        if self.job.examine is None:
            return
        self.job.learner.eval()
        if self.job.examine(self.done.step):
            self.done.stopped = True
        self.job.learner.train()

    def _log(self, norm: float, validation: float | None) -> float:
        job, done = self.job, self.done
        factor = schedule_factor(done.step, job.plan, job.settings)
        record = StepRecord(
            step=done.step,
            epoch=round(job.feed.epoch_at(done.step), 4),
            loss=done.loss_sum / done.loss_weight,
            learning_rate=job.settings.learning_rate * factor,
            grad_norm=norm if math.isfinite(norm) else None,  # float16's scaling leaves such a step out
            tokens=done.tokens,
            seconds=round(done.seconds, 3),
            validation_loss=validation,
        )
        if job.devices.leads:
            append_jsonl(job.metrics, record.to_json())
            if job.mirror is not None:
                job.mirror(record)
        done.loss_sum = done.loss_weight = 0.0
        return record.loss

    def _halve(self) -> None:
        """Memory ran out in a forward or backward pass: half as much at a time, the same rows a step."""
        job, done = self.job, self.done
        job.optimizer.zero_grad(set_to_none=True)
        if job.devices.world > 1 or not job.feed.batches(done.step + 1, done.halvings + 1):
            raise LuthierError(
                f"step {done.step + 1}: memory ran out with one row in a forward pass"
                if job.devices.world == 1
                else f"step {done.step + 1}: memory ran out on one of {job.devices.world} processes",
                "lower model.max_tokens or train.micro_batch_size, or set train.gradient_checkpointing: true",
            )
        done.halvings += 1
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        say(
            f"step {done.step + 1}: memory ran out; forward passes are halved and accumulation doubled from here on "
            f"(the {job.settings.batch_size} rows of a step stay the same)"
        )

    def _note_gradients(self) -> None:
        """Which tensors have a gradient so far, on the device."""
        now = [
            torch.zeros((), device=p.device) if p.grad is None else p.grad.detach().abs().amax()
            for p in self.parameters
        ]
        stacked = torch.stack([value.to(now[0].device) for value in now])
        self.had_gradient.append(stacked)

    def _judge_gradients(self) -> None:
        """Which tensors had none up to now: kept in the state, so that a run cut here judges as a whole one does."""
        if not self.had_gradient:
            return
        most = torch.stack(self.had_gradient).amax(0).tolist()
        names = [name for name, _ in self.job.learner.tuned()]
        before = set(self.done.silent) if self.done.step > len(self.had_gradient) else set(names)
        self.done.silent = [name for name, value in zip(names, most, strict=True) if value == 0.0 and name in before]
        self.had_gradient.clear()
        if self.done.step < min(_EVERY_TENSOR_BY, self.job.plan.steps) or not self.done.silent:
            return
        if len(self.done.silent) == len(names):
            raise LuthierError(
                f"after {self.done.step} steps no trainable tensor has had a gradient",
                "look at what model.lora.target_modules names: the loss does not pass through it",
            )
        say(
            f"WARNING: {len(self.done.silent)} of {len(names)} trainable tensors had no gradient in the first "
            f"{self.done.step} steps, such as {self.done.silent[0]}"
        )

    def _save_all(self, must: bool = False) -> bool:
        """Save what was done, which is read from the device before. Returns whether it is on the disk."""
        self._read()
        job, done = self.job, self.done
        saved = False
        if job.devices.leads:
            done.scale = job.devices.precision.state()
            saved = job.checkpoints.save(job.learner, job.optimizer, dict(vars(done)), must=must)
        on_disk = job.devices.any(saved)
        if done.best_step == done.step and not on_disk:  # what is not on disk cannot be gone back to
            done.best_step, done.best_loss = self.best_before
        return on_disk


def _restore(job: Job) -> Progress:
    """Go back to the newest checkpoint that can be trusted, and cut the metrics to it."""
    with job.devices.leader_first():  # it sets broken ones aside, and the others find the rest
        step = job.checkpoints.newest()
        if job.devices.leads:
            truncate_metrics(job.metrics, step or 0)
    done = Progress(**job.checkpoints.restore(step, job.learner, job.optimizer)) if step else Progress()
    if done.best_loss is None:  # what the run had stopped for is lost
        done.stopped = False
    return done
