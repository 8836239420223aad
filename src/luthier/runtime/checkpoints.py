"""Checkpoints: written whole or not at all, verified byte for byte before they are trusted, rotated by step.

A checkpoint is a sealed folder: what the learner saves of itself, the optimizer's tensors, and `state.json`. There is
no random state in it: the loop seeds every step from (seed, step). Nothing is pickled. It knows no task and no model.

What it promises, each proved by breaking every operation of a save (tests/runtime/test_faults.py):

* A kill, a full disk or a power cut at any moment leaves the checkpoints as they were before the save or after it.
* Nothing is deleted before its successor is sealed and read back from the disk.
* A broken checkpoint is never used and never in the way: `newest` moves it to quarantine/ with the reason, says so,
  and falls back to the one before. When none is left, training starts again from step 0, and that is said too:
  training is a function of the recipe, so it ends in the same weights, later. What is whole but does not fit (another
  base, a renamed key) is refused by name instead, and stays where it is.
* A best checkpoint that is lost costs the choice of it and no work: the state of those that name it is restored
  without a best, and that is said. The best of the steps that follow takes its place, so the run may end in others of
  its weights than it would have.
* A save that fails in mid-training is said and counted, and tried again when the next one is due; training goes on.
"""

from __future__ import annotations

import re
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from luthier.console import say
from luthier.errors import CheckpointError, DiskError
from luthier.files import (
    MANIFEST,
    append_jsonl,
    atomic_folder,
    move_folder,
    read_json,
    remove_folder,
    remove_leftovers,
    verify_folder,
    write_json,
)
from luthier.models.learner import Learner
from luthier.runtime import optimizer_state
from luthier.runtime.disk import check_room, check_room_to_save, checkpoint_bytes, most_checkpoints

OPTIMIZER = "optimizer.safetensors"
OPTIMIZER_FACTS = "optimizer.json"
STATE = "state.json"
QUARANTINE = "quarantine"
_NAME = re.compile(r"step-(\d{6,})")


@dataclass
class Checkpoints:
    """The checkpoints of one stage. One process at a time works with them (the run's lock)."""

    folder: Path
    base_name: str
    """Written into the manifest for people; whether a base fits is for the learner to say, by its digest."""
    keep: int = 2
    """How many of the newest stay; 0: all."""
    every: int = 50
    """Steps between saves."""
    minutes: float = 0.0
    """Also save when so many minutes have gone since the last attempt; 0: never. Results do not depend on it."""
    keep_best: bool = True
    """Whether the state's `best_step` is for the run's end to go back to; without it nobody looks for that one."""
    saved: int = 0
    failed_saves: int = 0
    _attempted: float = field(default_factory=time.monotonic)
    _verified: set[int] = field(default_factory=set, init=False)
    """Steps that `newest` has just read whole, for the next `restore` to trust once."""

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}"

    def steps(self) -> list[int]:
        """Steps that have a sealed folder, in order, as their manifests say."""
        return sorted(step for step in self._named() if _sealed_step(self.path(step)) == step)

    def due(self, step: int, now: float) -> bool:
        """Whether to save after `step`; `now` is time.monotonic()."""
        return step % self.every == 0 or (self.minutes > 0 and now - self._attempted >= 60 * self.minutes)

    def status(self) -> dict[str, int]:
        """What the run's record says of them: saves of this process, not of those before it, and what lies aside."""
        return {
            "saved_by_this_process": self.saved,
            "failed_saves_of_this_process": self.failed_saves,
            "quarantined": len(self._quarantined()),
        }

    def check_room(self, learner: Learner, optimizer: torch.optim.Optimizer, last: int) -> None:
        """Raise RequestError, before training to step `last`, where those to keep and the one being written have no
        room."""
        planned = last // self.every + 1
        count = most_checkpoints(self.keep, self.keep_best, planned) - len(self.steps())
        check_room(self.folder, checkpoint_bytes(learner, optimizer), max(1, count))

    def save(
        self, learner: Learner, optimizer: torch.optim.Optimizer, state: dict[str, Any], *, must: bool = False
    ) -> bool:
        """Save step `state["step"]`, then drop what rotation allows (never the best, never the newest two).

        State must be a function of the step (but for the clock): a step that is there, whole, is not written again.
        Returns whether it is there, sealed and read back. A disk that refuses is said and counted; with `must` (the
        end of a training, a stop that was asked for) it raises DiskError, for then nothing would try again.
        """
        self._attempted = time.monotonic()
        self._verified.clear()
        step = int(state["step"])
        try:
            self._write(step, learner, optimizer, state)
        except DiskError as error:
            self.failed_saves += 1
            if must:
                raise
            kept = self.steps()
            _loud(
                f"step {step} could NOT be saved ({error.message}); training goes on, the last checkpoint is "
                f"{f'step {kept[-1]}' if kept else 'none'}, and saving is tried again when it is next due"
            )
            return False
        self._rotate()
        return True

    def newest(self) -> int | None:
        """The newest step whose every byte verifies; broken ones, its best one among them, are set aside, and said.

        Removes what killed saves left. None where there is none: said loudly when there have been some.
        """
        remove_leftovers(self.folder)
        self._verified.clear()
        for step in sorted(self._named(), reverse=True):
            wrong = self._wrong(step)
            if wrong is None:
                self._verified.add(step)
                self._look_at_best(step)
                return step
            set_aside(self.path(step), wrong)
        if self._quarantined():
            _loud(
                f"NO checkpoint in {self.folder} can be trusted: training starts again from step 0; "
                f"the broken ones are in {self.folder / QUARANTINE}"
            )
        return None

    def restore(self, step: int, learner: Learner, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Put learner and optimizer back as they were after `step`. Returns the state.

        Where the best checkpoint that the state names is lost, its `best_step` is 0 and its `best_loss` None, and that
        is said. Raises CheckpointError where the checkpoint is broken or does not fit.
        """
        folder = self.path(step)
        verified, self._verified = self._verified, set()
        wrong = None if step in verified else self._wrong(step)
        if wrong is not None:
            raise CheckpointError(f"{folder}: {wrong}", "resume the run: it goes back to one that is whole by itself")
        learner.load(folder)
        tensors, facts = load_file(str(folder / OPTIMIZER)), read_json(folder / OPTIMIZER_FACTS)
        optimizer_state.unpack(optimizer, learner.tuned(), tensors, facts)
        state: dict[str, Any] = read_json(folder / STATE)
        best = self._best(step)
        if best not in (0, step, *verified) and (wrong := self._wrong(best)):
            _loud(
                f"the best checkpoint, step {best}, is LOST ({wrong}): training goes on from step {step} without it, "
                "and the best of the steps that follow takes its place"
            )
            state |= {"best_step": 0, "best_loss": None}
        return state

    def _write(self, step: int, learner: Learner, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Seal the folder of `step` and read it back from the disk. Raises DiskError; what was there before stays."""
        target = self.path(step)
        if target.exists():
            wrong = self._wrong(step)
            if wrong is None:  # a step's checkpoint is a function of the step
                return
            set_aside(target, wrong)
        remove_leftovers(self.folder)
        check_room_to_save(self.folder, checkpoint_bytes(learner, optimizer))
        with atomic_folder(target, {"step": step, "base": self.base_name}) as folder:
            learner.save(folder)
            # Straight from the tensors' memory: through bytes it would cost twice their size at the peak.
            tensors, facts = optimizer_state.pack(optimizer, learner.tuned())
            save_file(tensors, str(folder / OPTIMIZER))
            write_json(folder / OPTIMIZER_FACTS, facts)
            write_json(folder / STATE, state)
        wrong = verify_folder(target, from_disk=True)
        if wrong is not None:
            set_aside(target, wrong)
            raise DiskError(f"{target}: read back, {wrong}", "look at the disk")
        self.saved += 1

    def _rotate(self) -> None:
        """Drop all but the newest and the best of each. A folder that cannot be dropped stays for the next time."""
        if not self.keep:
            return
        steps = self.steps()
        newest = steps[-max(2, self.keep) :]
        for step in sorted(set(steps) - {*newest, *(self._best(step) for step in newest)}):
            try:
                remove_folder(self.path(step))
            except DiskError as error:
                _loud(str(error))

    def _wrong(self, step: int) -> str | None:
        """What keeps the checkpoint of `step` from being trusted, or None."""
        folder = self.path(step)
        wrong = verify_folder(folder)
        if wrong is not None:
            return wrong
        sealed = read_json(folder / MANIFEST)
        if sealed.get("step") != step:
            return f"{MANIFEST} is that of step {sealed.get('step')}"
        for name in (OPTIMIZER, OPTIMIZER_FACTS, STATE):
            if name not in sealed["files"]:
                return f"{name} is missing, and {MANIFEST} does not name it"
        return None

    def _look_at_best(self, step: int) -> None:
        """Verify the best checkpoint that `step` names. A broken one is set aside, for `restore` to miss."""
        best = self._best(step)
        if best in (0, step) or not self.path(best).exists():
            return
        wrong = self._wrong(best)
        if wrong is None:
            self._verified.add(best)
        else:
            set_aside(self.path(best), wrong)

    def _best(self, step: int) -> int:
        """The step that the state of a checkpoint calls the best; 0 for none, not kept, and not to be read."""
        if not self.keep_best:
            return 0
        try:
            return int(read_json(self.path(step) / STATE).get("best_step") or 0)
        except (OSError, ValueError, TypeError, AttributeError):
            return 0

    def _named(self) -> list[int]:
        """Steps that a folder is named after, whole or not. Other names (a copy made by hand) are left alone."""
        found = (_NAME.fullmatch(item.name) for item in self.folder.glob("step-*"))
        return [int(match[1]) for match in found if match and self.path(int(match[1])).name == match[0]]

    def _quarantined(self) -> list[Path]:
        return list((self.folder / QUARANTINE).glob("step-*"))


def set_aside(folder: Path, wrong: str) -> None:
    """Move a broken sealed folder out of the way, to quarantine/ beside it, write down why, and say so."""
    aside = folder.parent / QUARANTINE / folder.name
    _loud(f"{folder} is broken ({wrong}); set aside in {aside.parent}")
    move_folder(folder, aside)
    with suppress(DiskError):  # it was said; a full disk is no reason to stop here
        append_jsonl(aside.parent / "reasons.jsonl", {"folder": folder.name, "reason": wrong})


def _loud(text: str) -> None:
    with suppress(OSError):  # the log itself may lie on the disk that is full
        say(text)


def _sealed_step(folder: Path) -> int | None:
    """The step in a folder's manifest; None where that cannot be read."""
    try:
        step: int = read_json(folder / MANIFEST)["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return step
