"""The training of a stage, whatever its task: from a learner and its rows to a sealed adapter folder."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from luthier.console import say
from luthier.errors import CheckpointError, LuthierError
from luthier.files import MANIFEST, atomic_folder, read_json, sha256_file, verify_folder
from luthier.models.feeds import Feed
from luthier.models.learner import Learner
from luthier.recipe import Recipe
from luthier.records import StepRecord
from luthier.rundir import StageDir
from luthier.runtime.checkpoints import STATE, Checkpoints, set_aside
from luthier.runtime.devices import Devices
from luthier.train.loop import Job, Progress, train
from luthier.train.optim import make_optimizer
from luthier.train.plan import make_plan


@dataclass
class Fit:
    """A learner and what it learns from."""

    learner: Learner
    feed: Feed
    rows: int
    """Rows of an epoch."""
    devices: Devices
    seal: Callable[[Path], dict[str, Any]]
    """Writes the final adapter into a folder that is being filled; returns what the record keeps beside."""
    validate: Callable[[], float] | None = None
    mirror: Callable[[StepRecord], None] | None = None
    examination: Examination | None = None


class Examination(Protocol):
    """Exams that a stage's checkpoints sit."""

    def during(self, step: int) -> bool:
        """Forget what was examined of later steps; examine the learner as it stands after `step` (0: not trained),
        where that is due; whether training should end."""

    def settle(self, learner: Learner, checkpoints: Checkpoints, usual: int) -> int:
        """Examine what is left, and draw the conclusion: the step that becomes the final adapter, which is the `usual`
        one where no exam chooses. The learner may be left as any checkpoint has it."""


def fit(ready: Fit, stage: StageDir, recipe: Recipe, *, resume: bool, resume_line: str) -> dict[str, Any]:
    """Train, unless a sealed adapter says that it was done. Returns what the stage's record needs.

    Raises LuthierError where training moved no weight at all: it would look like success otherwise.
    """
    if stage.adapter.exists():
        wrong = verify_folder(stage.adapter)
        if wrong is None:
            ready.learner.load(stage.adapter)
            found: dict[str, Any] = read_json(stage.adapter / MANIFEST)["training"]
            return found
        set_aside(stage.adapter, wrong)
    begin = _fingerprint(ready.learner)
    job = make_job(ready, stage, recipe, resume_line)
    job.checkpoints.check_room(job.learner, job.optimizer, job.plan.steps)
    done = train(job, resume)
    kept = _settle(ready, job, done)
    record = {
        "steps": done.step,
        "epochs": round(done.step / ready.feed.steps_per_epoch, 4),
        "seconds": round(done.seconds, 2),
        "rows": done.rows,
        "tokens": done.tokens,
        "halvings": done.halvings,
        "best": None if done.best_loss is None else {"step": done.best_step, "validation_loss": done.best_loss},
        "stopped_early": done.stopped,
        "kept_step": kept,
        "checkpoints": job.checkpoints.status(),
        "learning": {**_learning(begin, ready.learner), "silent": done.silent[:20]},
    }
    about: dict[str, Any] = {}
    with atomic_folder(stage.adapter, about) as folder:
        record |= ready.seal(folder)
        about["training"] = record
    return record


def _settle(ready: Fit, job: Job, done: Progress) -> int:
    """The step whose weights the learner has in the end, which become the final adapter."""
    usual = done.best_step if job.settings.select == "best" and done.best_step else done.step
    if ready.examination is None:
        return usual
    kept = ready.examination.settle(job.learner, job.checkpoints, usual)
    job.learner.load(job.checkpoints.path(kept))
    return kept


def make_job(ready: Fit, stage: StageDir, recipe: Recipe, resume_line: str = "") -> Job:
    """The training that a recipe asks for."""
    return Job(
        learner=ready.learner,
        optimizer=make_optimizer(ready.learner, recipe.train, recipe.model.learned_tokens.learning_rate),
        plan=make_plan(ready.rows, recipe.train),
        settings=recipe.train,
        seed=recipe.seed,
        feed=ready.feed,
        devices=ready.devices,
        checkpoints=stage_checkpoints(stage, recipe),
        metrics=stage.metrics,
        validate=ready.validate,
        mirror=ready.mirror,
        examine=ready.examination.during if ready.examination else None,
        resume_line=resume_line,
    )


def stage_checkpoints(stage: StageDir, recipe: Recipe) -> Checkpoints:
    """Where and how often the recipe has a stage saved."""
    train = recipe.train
    return Checkpoints(
        stage.checkpoints,
        recipe.model.base,
        train.keep_checkpoints,
        train.save_every,
        train.save_minutes,
        keep_best=train.select == "best",
    )


def prove_resume(ready: Fit, stage: StageDir, recipe: Recipe) -> dict[str, Any]:
    """Go from one checkpoint of this run to the next once more, and compare every byte. The learner is used up by it.

    With a single checkpoint the way starts at the first step. The run's checkpoints are only read, but for broken ones,
    which are set aside. Raises CheckpointError naming what differs.
    """
    job = make_job(ready, stage, recipe)
    end = job.checkpoints.newest()
    if end is None:
        raise CheckpointError(f"{stage.checkpoints}: there is no checkpoint to prove", "run it for longer first")
    begin = max((step for step in job.checkpoints.steps() if step < end), default=0)
    start = Progress(**job.checkpoints.restore(begin, job.learner, job.optimizer)) if begin else Progress()
    with tempfile.TemporaryDirectory(prefix="luthier-proof-") as folder:
        place = Path(folder)
        again = replace(job.checkpoints, folder=place / "checkpoints")
        proof = replace(job, checkpoints=again, metrics=place / "metrics.jsonl", mirror=None, examine=None)
        train(proof, start=start, until=end)
        differing = _differences(job.checkpoints.path(end), again.path(end))
    if differing:
        raise CheckpointError(
            f"step {end}, reached again from step {begin}, differs in {', '.join(differing)}",
            "the machine, its libraries or its number of threads are not those of the run (see run.json), or a bug: "
            "please report it",
        )
    say(f"proved: from step {begin} to step {end} once more, every byte of adapter, optimizer and state is the same")
    return {"from": begin, "to": end, "equal": True}


def _differences(first: Path, second: Path) -> list[str]:
    """Files of two checkpoints that are not equal; the clock in the state is left out."""
    names = sorted({item.name for folder in (first, second) for item in folder.iterdir()} - {MANIFEST, STATE})
    differing = [
        name
        for name in names
        if not all((folder / name).is_file() for folder in (first, second))
        or sha256_file(first / name) != sha256_file(second / name)
    ]
    one, other = read_json(first / STATE), read_json(second / STATE)
    return differing + [
        f"{STATE}: {key}" for key in sorted({*one, *other} - {"seconds"}) if one.get(key) != other.get(key)
    ]


def _fingerprint(learner: Learner) -> dict[str, tuple[float, float]]:
    """Two sums of every trained tensor: enough to see that it moved, without a copy of it."""
    found = {}
    for name, p in learner.tuned():
        flat = p.detach().double().reshape(-1)
        ramp = torch.arange(1, len(flat) + 1, device=flat.device, dtype=torch.float64)
        found[name] = (float(flat.square().sum()), float((flat * ramp).sum()))
    return found


def _learning(begin: dict[str, tuple[float, float]], learner: Learner) -> dict[str, Any]:
    """Which tensors moved."""
    end = _fingerprint(learner)
    still = [name for name in begin if begin[name] == end[name]]
    if len(still) == len(begin):
        raise LuthierError("training changed no weight at all", "raise train.learning_rate or the number of steps")
    return {"tensors": len(begin), "moved": len(begin) - len(still), "still": still[:20]}
