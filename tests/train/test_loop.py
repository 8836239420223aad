"""The loop: resuming at every step, equal losses whatever the accumulation, and what stops it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from luthier.errors import Interrupted, NonFiniteLoss
from luthier.train import loop
from luthier.train.loop import train
from support.jobs import make_job, outcome, recipe

STEPS = 12


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of 12 steps, a checkpoint at each, dropout on."""
    folder = tmp_path_factory.mktemp("loop") / "whole"
    job = make_job(folder, recipe())
    assert job.plan.steps == STEPS
    train(job)
    return folder, outcome(job)


def _cut(whole_folder: Path, name: str, step: int) -> Path:
    """A copy of the run as a kill right after `step` would leave it."""
    folder = whole_folder.parent / name
    shutil.copytree(whole_folder, folder)
    for checkpoint in folder.glob("checkpoints/step-*"):
        if int(checkpoint.name[5:]) > step:
            shutil.rmtree(checkpoint)
    return folder


@pytest.mark.parametrize("step", range(1, STEPS))
def test_resume_is_bit_exact_at_every_step(whole, step):
    folder, expected = whole
    torch.manual_seed(step * 7)  # whatever the process did before must not matter
    np.random.seed(step)
    job = make_job(_cut(folder, f"cut-{step}", step), recipe())
    train(job, resume=True)
    assert outcome(job) == expected


def test_resume_is_bit_exact_in_a_fresh_process(whole):
    folder, expected = whole
    cut = _cut(folder, "fresh", 5)
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parents[1] / "support" / "jobs.py"), str(cut)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == expected


def test_a_broken_newest_checkpoint_is_set_aside_and_the_one_before_is_used(whole):
    folder, expected = whole
    cut = _cut(folder, "broken", 8)
    torn = cut / "checkpoints" / "step-000008" / "optimizer.safetensors"
    torn.write_bytes(torn.read_bytes()[:-3])
    job = make_job(cut, recipe())
    train(job, resume=True)
    assert outcome(job) == expected
    assert (cut / "checkpoints" / "quarantine" / "step-000008").is_dir()


def test_workers_change_nothing(whole):
    folder, expected = whole
    job = make_job(folder.parent / "workers", recipe(workers=2))
    train(job)
    assert outcome(job) == expected


@pytest.mark.parametrize("ranking", [0.0, 0.3])
def test_loss_and_gradient_do_not_depend_on_accumulation(tmp_path, ranking):
    found = {}
    for size in (16, 4, 2 if ranking else 1):
        made = recipe()
        made.task.ranking_weight = ranking
        made.train.batch_size, made.train.micro_batch_size = 16, size
        job = make_job(tmp_path / str(size), made, rows=16)
        job.learner.eval()  # dropout draws depend on shapes; everything else must not
        group = job.feed.batches(1)
        weights = job.learner.step_weights(group)
        assert weights.main == 16
        assert bool(weights.pairs) == bool(ranking)
        total = torch.zeros(())
        for batch in group:
            loss, _ = job.learner.loss(batch, weights)
            loss.backward()
            total += loss.detach()
        gradients = torch.cat([p.grad.flatten() for p in job.learner.parameters() if p.grad is not None])
        found[size] = (len(group), float(total), gradients)
    reference = found[16]
    assert reference[0] == 1
    for count, total, gradients in found.values():
        assert count >= 1
        assert total == pytest.approx(reference[1], abs=1e-6)
        torch.testing.assert_close(gradients, reference[2], atol=1e-6, rtol=1e-5)
    assert found[4][0] == 4


def test_nan_stops_before_the_step_and_names_the_rows(tmp_path):
    job = make_job(tmp_path / "nan", recipe(), poison=7)
    with pytest.raises(NonFiniteLoss, match="row-7"):
        train(job)
    last = job.checkpoints.steps()[-1:] if job.checkpoints.steps() else []
    poisoned = next(step for step in range(1, job.plan.steps + 1) if 7 in job.feed.rows(step))
    assert last == ([poisoned - 1] if poisoned > 1 else [])
    assert all(bool(torch.isfinite(p).all()) for p in job.learner.parameters())


def test_sigterm_saves_the_step_and_resumes_to_the_same_bytes(whole, tmp_path_factory, monkeypatch):
    folder, expected = whole
    target = folder.parent / "sigterm"
    job = make_job(target, recipe())
    taken = loop._Training._step

    def stop_at_four(self, *args):
        taken(self, *args)
        if self.done.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop._Training, "_step", stop_at_four)
    with pytest.raises(Interrupted) as caught:
        train(job)
    assert caught.value.exit_code == 130
    assert job.checkpoints.steps()[-1] == 4
    monkeypatch.undo()
    again = make_job(target, recipe())
    train(again, resume=True)
    assert outcome(again) == expected


def test_best_epoch_is_selected_and_kept(tmp_path):
    made = recipe(select="best")
    made.train.keep_checkpoints, made.train.epochs = 2, 4
    job = make_job(tmp_path / "best", made)
    job.checkpoints.keep = 2
    losses = iter([0.5, 0.2, 0.6, 0.7])
    states = []

    def validate():
        states.append({n: p.detach().clone() for n, p in job.learner.named_parameters() if p.requires_grad})
        return next(losses)

    job.validate = validate
    done = train(job)
    assert done.best_step == 2 * job.plan.steps_per_epoch
    assert done.best_step in job.checkpoints.steps()
    for name, parameter in job.learner.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(parameter, states[1][name]), name


def test_training_learns(whole):
    _, expected = whole
    losses = [line["loss"] for line in expected["metrics"]]
    assert losses[-1] < losses[0]
