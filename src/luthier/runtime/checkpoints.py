"""Checkpoints: written whole or not at all, verified byte for byte before they are trusted, rotated by step.

A checkpoint holds the adapter in PEFT's format, the optimizer's tensors, and `state.json`. There is no random
state in it: the loop seeds every step from (seed, step). Nothing is pickled.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from luthier.console import say
from luthier.errors import CheckpointError
from luthier.files import MANIFEST, atomic_folder, read_json, verify_folder, write_json
from luthier.models import adapters
from luthier.models.verdict import VerdictModel

HEAD = "verdict_head.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"


@dataclass
class Checkpoints:
    """The checkpoints of one stage."""

    folder: Path
    base_name: str
    keep: int = 2

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}"

    def steps(self) -> list[int]:
        """Steps that have a sealed folder, in order."""
        return sorted(int(item.parent.name[5:]) for item in self.folder.glob(f"step-*/{MANIFEST}"))

    def save(self, model: VerdictModel, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Save step `state["step"]`, then drop what rotation allows (never the best, never the newest two)."""
        step = int(state["step"])
        if step in self.steps() and verify_folder(self.path(step)) is None:
            return
        shutil.rmtree(self.path(step), ignore_errors=True)
        with atomic_folder(self.path(step), {"step": step}) as folder:
            save_model(model, folder, self.base_name)
            save_file(_optimizer_tensors(optimizer), str(folder / OPTIMIZER))
            write_json(folder / STATE, state)
        kept = set(self.steps()[-max(2, self.keep) :]) | {int(state.get("best_step") or 0)}
        for old in self.steps():
            if old not in kept:
                shutil.rmtree(self.path(old))

    def newest(self) -> int | None:
        """The newest step whose every byte verifies; a broken one is set aside with its reason, and said."""
        for step in reversed(self.steps()):
            wrong = verify_folder(self.path(step))
            if wrong is None:
                return step
            set_aside(self.path(step), wrong)
        return None

    def restore(self, step: int, model: VerdictModel, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Put model and optimizer back as they were after `step`. Returns the state."""
        folder = self.path(step)
        load_model(model, folder)
        _restore_optimizer(optimizer, load_file(str(folder / OPTIMIZER)), folder)
        state: dict[str, Any] = read_json(folder / STATE)
        return state


def set_aside(folder: Path, wrong: str) -> None:
    """Move a broken sealed folder out of the way, to quarantine/ beside it, and say why."""
    aside = folder.parent / "quarantine" / folder.name
    say(f"{folder} is broken ({wrong}); set aside in {aside.parent}")
    aside.parent.mkdir(exist_ok=True)
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)


def save_model(model: VerdictModel, folder: Path, base_name: str) -> None:
    """The adapter in PEFT's format, and the head beside it where there is one."""
    adapters.save(model.language_model, folder, base_name)
    if model.head is not None:
        tensors = {name: value.detach().cpu().contiguous() for name, value in sorted(model.head.state_dict().items())}
        save_file(tensors, str(folder / HEAD))


def load_model(model: VerdictModel, folder: Path) -> None:
    """Put a saved adapter and head into a model of the same make."""
    adapters.restore(model.language_model, folder)
    if model.head is not None:
        if not (folder / HEAD).is_file():
            raise CheckpointError(f"{folder}: has no {HEAD}", "use the task.readout that it was trained with")
        try:
            model.head.load_state_dict(load_file(str(folder / HEAD)))
        except RuntimeError as error:
            raise CheckpointError(
                f"{folder / HEAD}: is the head of another read-out", "use the task.readout that it was trained with"
            ) from error


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{index}.{name}": torch.as_tensor(value).detach().cpu().contiguous().clone()
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], folder: Path) -> None:
    whole = optimizer.state_dict()
    count = sum(len(group["params"]) for group in whole["param_groups"])
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    if state and max(state) >= count:
        raise CheckpointError(
            f"{folder / OPTIMIZER}: has states for {max(state) + 1} weights, the model has {count}",
            "use the recipe that it was trained with",
        )
    whole["state"] = state
    optimizer.load_state_dict(whole)
