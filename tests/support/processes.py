"""What one of several processes does in tests/train/test_processes.py: processes.py FOLDER, under WORLD_SIZE and RANK.

Scores, trains with files of its own, and trains in files that all share, stopped once on the way. The last line of
standard output is what it found, as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from luthier.errors import Interrupted
from luthier.evaluate.answers import answer_losses
from luthier.recipe import Recipe
from luthier.runtime.devices import Devices
from luthier.train import loop
from luthier.train.loop import Job, train
from support import chats

ROWS = 9
"""Steps of 4, 4 and 1 rows: the last has one forward pass, so the second process has none."""
STEPS = 6


def recipe(**train_settings: Any) -> Recipe:
    """Six steps over two epochs, without dropout."""
    made = chats.recipe(log_every=1, **train_settings)
    made.model.lora.dropout = 0.0
    return made


def job_of(folder: Path, made: Recipe) -> Job:
    job = chats.make_job(folder, made, ROWS)
    with torch.no_grad():  # at the start lora_B is zero, and half of the gradient would be too
        for name, p in job.learner.tuned():
            p.copy_(torch.sin(torch.arange(p.numel()).reshape(p.shape) + len(name)) * 0.1)
    return job


def score(made: Recipe) -> dict[str, Any]:
    """Seven held-out rows of uneven weight: the losses, and how many rows this process computed."""
    base, model = chats.model_of(made)
    rows = [replace(row, weight=0.1 * (number + 1)) for number, row in enumerate(chats.chats(7, seed=9))]
    lessons = chats.encode(base, rows)
    inner, scored = model.row_losses, []

    def row_losses(batch: Any) -> Any:
        scored.extend(batch.ids)
        return inner(batch)

    model.row_losses = row_losses
    found = answer_losses(model, lessons, chats.layout_of(made, base), Devices("float32"))
    return {
        "scored": scored,
        "sums": found.sum_R.tolist(),
        "weights": found.weight_R.tolist(),
        "mean": found.mean,
    }


def shared_job(folder: Path) -> Job:
    """A job that looks at held-out rows after every step and keeps the best."""
    made = recipe(validate_every=1, select="best")
    job = job_of(folder, made)
    base = chats.model_of(made)[0]
    held_out = chats.encode(base, chats.chats(5, seed=9))
    job.validate = lambda: answer_losses(job.learner, held_out, chats.layout_of(made, base), job.devices).mean
    return job


def stop_at(step: int) -> None:
    """Ask this process to stop in a step, as a scheduler does."""
    taken = loop._Training._step

    def take(self: Any, *args: Any) -> None:
        taken(self, *args)
        if self.done.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    loop._Training._step = take


def weights_to(path: Path, job: Job) -> None:
    save_file({name: p.detach().contiguous() for name, p in job.learner.tuned()}, str(path))


def main(folder: Path) -> None:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    found: dict[str, Any] = score(recipe())
    own = job_of(folder / f"own-{rank}", recipe())
    assert (own.devices.rank, own.devices.world) == (rank, world)
    done = train(own)
    found |= {"steps": done.step, "rows": done.rows, "tokens": done.tokens, "draws": torch.initial_seed()}
    weights_to(folder / f"own-{rank}.safetensors", own)
    if rank == 1:
        stop_at(3)
    try:
        train(shared_job(folder / "shared"))
    except Interrupted as error:
        found["stopped"] = error.message
    shared = shared_job(folder / "shared")
    done = train(shared, resume=True)
    found |= {"best_step": done.best_step, "best_loss": done.best_loss}
    weights_to(folder / f"shared-{rank}.safetensors", shared)
    torch.distributed.destroy_process_group()
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
