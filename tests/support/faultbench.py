"""A bench for checkpoints: three of them lie ready, and work on copies of them is broken in every way.

Survived means: `newest` and `restore` give the state before the work or after it, bit for bit, with no help; nothing
is left behind or set aside; training can save again, and rotation then keeps what it should.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from luthier.runtime.checkpoints import QUARANTINE, Checkpoints
from support.faults import Disk, in_child
from support.powercut import after_power_cut, lay_out, snapshot
from support.tiny import Training

HOWS = ("kill", "short", "ENOSPC", "EIO")
SAVED, REFUSED = 0, 3
Check = Callable[[Path], str]
"""What is wrong in a folder; empty for nothing."""


def training(step: int) -> Training:
    """The tiny training after `step`; its best was step 1."""
    made = Training(step)
    made.state["best_step"] = min(step, 1)
    return made


def save(folder: Path, step: int) -> bool:
    made = training(step)
    return Checkpoints(folder, "toy").save(made.learner, made.optimizer, made.state)


def save_five(folder: Path) -> bool:
    return save(folder, 5)


class Bench:
    """Steps 1 (the best), 3 (the first to go) and 4 are there; step 5 is the one to save."""

    def __init__(self, place: Path) -> None:
        self.place, self.tried, self.count = place, 0, itertools.count()
        self.ready = place / "ready"
        keep_all = Checkpoints(self.ready, "toy", keep=9)
        for step in (1, 3, 4):
            made = training(step)
            assert keep_all.save(made.learner, made.optimizer, made.state)
        self.digests = {step: training(step).digest() for step in range(8)}

    def fresh(self) -> Path:
        """A copy of what lies ready."""
        folder = self.place / f"{next(self.count)}"
        shutil.copytree(self.ready, folder)
        return folder

    def record(self, work: Callable[[Path], object]) -> Disk:
        """The operations of some work on a disk that is well."""
        folder = self.fresh()
        with Disk(folder).watched() as disk:
            work(folder)
        shutil.rmtree(folder)
        return disk

    def break_all(
        self, work: Callable[[Path], bool], trouble: Check, hows: Sequence[str] = HOWS, most: int = 99
    ) -> list[str]:
        """Break every operation of `work` in every way. Returns what did not survive, at most so many."""
        log, found, self.tried = self.record(work).log, [], 0
        for at, how in itertools.product(range(len(log)), hows):
            if how == "short" and log[at].kind != "write":
                continue
            folder = self.fresh()
            self.tried += 1
            code = in_child(partial(_broken, work, Disk(folder, at, how)))
            wrong = _judged(trouble, folder)
            if code not in ((None,) if how in ("kill", "short") else (SAVED, REFUSED)):
                wrong = f"the process ended with {code}"
            if wrong:
                found.append(f"{how} at {at}, {log[at].kind} {log[at].path.name}: {wrong}")
            shutil.rmtree(folder)
            if len(found) == most:
                break
        print(f"{self.tried - len(found)} of {self.tried} faults survived ({len(log)} operations)")
        return found

    def cut_all(self, work: Callable[[Path], object], trouble: Check, most: int = 99) -> list[str]:
        """Cut the power at every moment of `work`. Returns what did not survive, at most so many."""
        disk, found, self.tried = self.record(work), [], 0
        for tree in after_power_cut(snapshot(self.ready), disk.root, disk.log, tries=12):
            folder = self.place / "cut"
            lay_out(tree, folder)
            self.tried += 1
            if wrong := _judged(trouble, folder):
                found.append(wrong)
            shutil.rmtree(folder)
            if len(found) == most:
                break
        print(f"{self.tried - len(found)} of {self.tried} states after a power cut survived")
        return found

    def trouble(self, folder: Path) -> str:
        """What keeps a training from going on in `folder` as if nothing had been."""
        found = Checkpoints(folder, "toy")
        step, kept = found.newest(), found.steps()
        if step not in (4, 5) or not {1, 4} <= set(kept):
            return f"the newest is {step} of {kept}"
        if step == 4 and 3 not in kept:
            return "the oldest was deleted before its successor was there"
        if left := {item.name for item in folder.iterdir()} - {f"step-{one:06d}" for one in kept}:
            return f"left behind: {left}"
        if changed := [one for one in kept if not self.comes_back(found, one)]:
            return f"came back changed: {changed}"
        if not save(folder, 5) or not save(folder, 6):
            return "nothing can be saved any more"
        return "" if found.newest() == 6 and found.steps() == [1, 5, 6] else f"afterwards there are {found.steps()}"

    def trouble_going_back(self, folder: Path) -> str:
        """What keeps a training, whose step 4 is harmed, from going on at step 3."""
        found = Checkpoints(folder, "toy")
        if (step := found.newest()) != 3:
            return f"the newest is {step}"
        if {item.name for item in folder.iterdir()} - {"step-000001", "step-000003", QUARANTINE}:
            return "left behind"
        return "" if self.comes_back(found, 3) and save(folder, 4) and found.newest() == 4 else "does not go on"

    def comes_back(self, found: Checkpoints, step: int) -> bool:
        """Whether a step is restored bit for bit."""
        made = Training()
        made.state = found.restore(step, made.learner, made.optimizer)
        return made.digest() == self.digests[step]


def _judged(trouble: Check, folder: Path) -> str:
    """What is wrong; a person who would have to read a traceback is wrong too."""
    try:
        return trouble(folder)
    except Exception as error:
        return repr(error)


def _broken(work: Callable[[Path], bool], disk: Disk) -> int:
    with disk.watched():
        return SAVED if work(disk.root) else REFUSED


def harm(path: Path, how: str) -> None:
    """missing, empty, nul, half, or one bit."""
    data = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
        return
    data[len(data) // 2] ^= 1
    broken = {"empty": b"", "nul": bytes(len(data)), "half": bytes(data[: len(data) // 2]), "bit": bytes(data)}
    path.write_bytes(broken[how])
