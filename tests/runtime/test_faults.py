"""Every operation of a save broken in every way: what is left resumes by itself, bit for bit, and saves again.

The controls save badly on purpose and must be caught, so the harness can fail.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from luthier import files
from luthier.errors import DiskError
from luthier.files import MANIFEST, append_jsonl, read_jsonl, write_json
from luthier.rundir import truncate_metrics
from luthier.runtime import checkpoints as module
from luthier.runtime.checkpoints import OPTIMIZER, OPTIMIZER_FACTS, QUARANTINE, STATE, Checkpoints
from support.faultbench import HOWS, harm, save, save_five
from support.tiny import Training


def test_a_save_survives_every_fault_at_every_operation(bench):
    assert bench.break_all(save_five, bench.trouble) == []
    assert bench.tried >= 100


def test_a_power_cut_at_any_moment_of_a_save_leaves_the_old_or_the_new(bench):
    assert bench.cut_all(save_five, bench.trouble) == []
    assert bench.tried >= 100


def test_going_back_survives_every_fault_too(bench):
    harm(bench.ready / "step-000004" / OPTIMIZER, "half")
    leftover = bench.ready / ".tmp-step-000005-abc"
    leftover.mkdir()
    (leftover / STATE).write_bytes(b"half")

    def go_back(folder: Path) -> bool:
        try:
            return Checkpoints(folder, "toy").newest() == 3
        except DiskError:
            return False

    assert bench.break_all(go_back, bench.trouble_going_back) == []
    assert bench.cut_all(go_back, bench.trouble_going_back) == []


def test_forgetting_a_best_that_is_lost_survives_every_fault(bench):
    """Step 1, the best, is harmed: the newest loses no step by it, whatever breaks while that one is set aside."""
    harm(bench.ready / "step-000001" / OPTIMIZER, "half")

    def forget(folder: Path) -> bool:
        try:
            return Checkpoints(folder, "toy").newest() == 4
        except DiskError:
            return False

    def trouble(folder: Path) -> str:
        found, made = Checkpoints(folder, "toy"), Training()
        if (step := found.newest()) != 4:
            return f"the newest is {step}"
        state = found.restore(4, made.learner, made.optimizer)
        if (state["best_step"], state["best_loss"]) != (0, None):
            return f"{state} names the best that is lost"
        made.state = {"step": 4, "best_step": 1}  # but for the best, as it was
        if made.digest() != bench.digests[4]:
            return "came back changed"
        if {item.name for item in folder.iterdir()} - {"step-000003", "step-000004", QUARANTINE}:
            return "left behind"
        return "" if save(folder, 5) and found.newest() == 5 else "does not go on"

    assert trouble(bench.fresh()) == ""
    assert bench.break_all(forget, trouble) == []
    assert bench.cut_all(forget, trouble) == []


def test_a_line_of_metrics_is_whole_or_not_there(bench):
    """What a kill tears is cut away on resuming; what a full disk tears, at once."""
    line = '{"step": 1}\n'
    (bench.ready / "metrics.jsonl").write_text(line)

    def append(folder: Path) -> bool:
        try:
            append_jsonl(folder / "metrics.jsonl", {"step": 2})
        except DiskError:
            assert (folder / "metrics.jsonl").read_text() == line
            return False
        return True

    def trouble(folder: Path) -> str:
        truncate_metrics(folder / "metrics.jsonl", 9)
        append_jsonl(folder / "metrics.jsonl", {"step": 3})
        steps = [row["step"] for row in read_jsonl(folder / "metrics.jsonl")]
        return "" if steps in ([1, 3], [1, 2, 3]) else f"{steps}"

    assert bench.break_all(append, trouble) == []
    assert bench.cut_all(append, trouble) == []


# Saves that are wrong on purpose.


@contextmanager
def in_place(path: Path, about: dict[str, Any]) -> Iterator[Path]:
    """Straight into its place, sealed afterwards."""
    path.mkdir()
    yield path
    files._seal(path, about, MANIFEST, durable=True)


@contextmanager
def unsealed(path: Path, about: dict[str, Any]) -> Iterator[Path]:
    """Straight into its place, with a manifest that says nothing."""
    path.mkdir()
    write_json(path / MANIFEST, {**about, "files": dict.fromkeys((OPTIMIZER, OPTIMIZER_FACTS, STATE))})
    yield path


write = Checkpoints._write


def deletes_first(self: Checkpoints, step: int, *rest: Any) -> None:
    for old in self.steps()[:-1]:
        files.remove_folder(self.path(old))
    write(self, step, *rest)


def stops_on_a_full_disk(self: Checkpoints, step: int, *rest: Any) -> None:
    try:
        write(self, step, *rest)
    except DiskError as error:
        raise RuntimeError from error


CONTROLS = {
    "no temporary name": (["kill"], [(module, "atomic_folder", in_place)]),
    "no digests": (
        ["kill"],
        [(module, "atomic_folder", unsealed), (module, "verify_folder", lambda *_, **__: None)],
    ),
    "emptied in place": (["kill"], [(module, "remove_folder", shutil.rmtree)]),
    "deleted before the successor": (["kill"], [(Checkpoints, "_write", deletes_first)]),
    "a full disk stops training": (["ENOSPC"], [(Checkpoints, "_write", stops_on_a_full_disk)]),
    "leftovers stay": (["kill"], [(module, "remove_leftovers", lambda _: None)]),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_control_a_save_that_is_wrong_is_caught(bench, monkeypatch, name):
    hows, changes = CONTROLS[name]
    assert set(hows) < set(HOWS)
    for place, what, change in changes:
        monkeypatch.setattr(place, what, change)
    assert bench.break_all(save_five, bench.trouble, hows, most=1) != []


@pytest.mark.parametrize("unsynced", ["files", "names"])
def test_control_a_save_that_pushes_nothing_to_the_disk_is_caught(bench, monkeypatch, unsynced):
    sync = files._sync
    monkeypatch.setattr(files, "_sync", lambda path: None if path.is_dir() is (unsynced == "names") else sync(path))
    assert bench.cut_all(save_five, bench.trouble, most=1) != []
