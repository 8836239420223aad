"""Checkpoints: sealed, verified, rotated, and refused when they do not fit."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from luthier.errors import CheckpointError, DiskError, RequestError
from luthier.files import MANIFEST, read_json, verify_folder, write_json
from luthier.runtime import disk
from luthier.runtime.checkpoints import OPTIMIZER, OPTIMIZER_FACTS, QUARANTINE, STATE, Checkpoints
from luthier.runtime.disk import checkpoint_bytes
from support.faultbench import harm
from support.tiny import SETTINGS, WEIGHTS, Training


@pytest.fixture
def found(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", "toy")


def save(found: Checkpoints, step: int, best: int = 0, **options: bool) -> bool:
    made = Training(step)
    made.state["best_step"] = best
    return found.save(made.learner, made.optimizer, made.state, **options)


def test_the_manifest_names_every_file_the_step_and_the_base(found):
    assert save(found, 1)
    manifest = read_json(found.path(1) / MANIFEST)
    assert set(manifest["files"]) == {WEIGHTS, SETTINGS, OPTIMIZER, OPTIMIZER_FACTS, STATE}
    assert (manifest["step"], manifest["base"]) == (1, "toy")
    assert verify_folder(found.path(1)) is None


def test_restoring_gives_back_every_bit_also_from_a_folder_that_was_moved(found, tmp_path):
    save(found, 3)
    found.folder.rename(tmp_path / "elsewhere")
    made, wanted = Training(), Training(3)
    made.state = Checkpoints(tmp_path / "elsewhere", "toy").restore(3, made.learner, made.optimizer)
    wanted.state["best_step"] = 0
    assert made.digest() == wanted.digest()
    made.advance()
    wanted.advance()
    assert made.digest() == wanted.digest()


def test_rotation_keeps_the_newest_and_the_best(found):
    for step in range(1, 8):
        save(found, step, best=2 if step >= 2 else 0)
    assert found.steps() == [2, 6, 7]
    found.keep = 3
    for step in (8, 9):
        save(found, step, best=2)
    assert found.steps() == [2, 7, 8, 9]


def test_rotation_keeps_the_best_of_the_checkpoint_that_one_may_have_to_go_back_to(found):
    for step, best in ((1, 1), (2, 1), (3, 1), (4, 4)):
        save(found, step, best)
    assert found.steps() == [1, 3, 4]
    harm(found.path(4) / WEIGHTS, "bit")
    assert found.newest() == 3
    save(found, 5, best=5)
    save(found, 6, best=5)
    assert found.steps() == [5, 6]


@pytest.mark.parametrize("how", ["half", "gone"])
def test_a_lost_best_costs_no_step_and_is_forgotten_and_said(found, capsys, how):
    for step, best in ((1, 1), (2, 2), (3, 2), (4, 2)):
        save(found, step, best)
    if how == "gone":
        shutil.rmtree(found.path(2))
    else:
        harm(found.path(2) / WEIGHTS, how)
    made, wanted = Training(), Training(4)
    assert found.newest() == 4
    made.state = found.restore(4, made.learner, made.optimizer)
    assert (made.state["best_step"], made.state["best_loss"]) == (0, None)
    wanted.state = made.state
    assert made.digest() == wanted.digest()
    assert "step 2, is LOST" in capsys.readouterr().err
    assert found.steps() == [3, 4]
    assert (found.folder / QUARANTINE / "step-000002").is_dir() is (how == "half")
    save(found, 5, best=5)
    assert found.newest() == 5
    assert found.restore(5, made.learner, made.optimizer)["best_step"] == 5


def test_a_best_that_the_newest_does_not_name_can_be_gone_back_to_only_whole(found):
    for step in (1, 2):
        save(found, step, best=1)
    harm(found.path(1) / WEIGHTS, "bit")
    made = Training()
    with pytest.raises(CheckpointError, match=f"{WEIGHTS} is not what was written"):
        found.restore(1, made.learner, made.optimizer)
    assert found.restore(2, made.learner, made.optimizer)["best_step"] == 0  # nobody has called newest


def test_where_the_best_is_not_asked_for_it_is_neither_kept_nor_looked_for(found, capsys):
    found.keep_best = False
    for step in range(1, 5):
        save(found, step, best=1)
    assert found.steps() == [3, 4]
    made = Training()
    assert found.newest() == 4
    assert found.restore(4, made.learner, made.optimizer)["best_step"] == 1
    assert capsys.readouterr().err == ""


def test_what_was_verified_a_moment_ago_is_read_once_and_trusted_once(found, monkeypatch):
    for step in (1, 2, 3):
        save(found, step, best=1)
    read: list[str] = []

    def counted(folder: Path, **more: bool) -> str | None:
        read.append(folder.name)
        return verify_folder(folder, **more)

    monkeypatch.setattr("luthier.runtime.checkpoints.verify_folder", counted)
    made = Training()
    assert found.newest() == 3
    found.restore(3, made.learner, made.optimizer)
    assert sorted(read) == ["step-000001", "step-000003"]
    harm(found.path(3) / WEIGHTS, "bit")
    with pytest.raises(CheckpointError, match="is not what was written"):
        found.restore(3, made.learner, made.optimizer)
    assert found.newest() == 2
    moved = replace(found, folder=found.folder.parent / "elsewhere")
    shutil.copytree(found.folder, moved.folder)
    read.clear()
    moved.restore(2, made.learner, made.optimizer)
    assert "step-000002" in read


@pytest.mark.parametrize("how", ["missing", "nul", "half"])
def test_harm_to_an_older_one_does_not_disturb_the_next_save(found, how):
    for step in (1, 2, 3):
        save(found, step, best=1)
    harm(found.path(2) / STATE, how)
    assert save(found, 4, best=1)
    assert save(found, 5, best=1)
    assert found.newest() == 5
    assert found.steps() == [1, 4, 5]


@pytest.mark.parametrize("name", [OPTIMIZER, OPTIMIZER_FACTS, STATE])
def test_a_file_that_even_the_manifest_does_not_name_is_missed_by_name(found, name, capsys):
    save(found, 1)
    save(found, 2)
    manifest = read_json(found.path(2) / MANIFEST)
    (found.path(2) / name).unlink()
    del manifest["files"][name]
    write_json(found.path(2) / MANIFEST, manifest)
    assert found.newest() == 1
    assert f"{name} is missing" in capsys.readouterr().err


def test_a_folder_under_another_steps_name_is_set_aside_and_a_copy_made_by_hand_is_left_alone(found, capsys):
    save(found, 1)
    shutil.copytree(found.path(1), found.path(9))
    for name in ("step-000001.mine", "step-0000001"):
        shutil.copytree(found.path(1), found.folder / name)
    assert found.steps() == [1]
    assert found.newest() == 1
    assert "that of step 1" in capsys.readouterr().err
    assert (found.folder / "step-000001.mine").is_dir()
    assert (found.folder / QUARANTINE / "step-000009").is_dir()


def test_when_none_is_whole_training_starts_again_and_that_is_said_each_time(found, capsys):
    assert found.newest() is None
    assert capsys.readouterr().err == ""
    for step in (1, 2):
        save(found, step)
        harm(found.path(step) / WEIGHTS, "nul")
    for _ in range(2):
        assert found.newest() is None
        assert "starts again from step 0" in capsys.readouterr().err
    assert list(found.status().values()) == [2, 0, 2]
    assert Checkpoints(found.folder, "toy").status() == {
        "saved_by_this_process": 0,
        "failed_saves_of_this_process": 0,
        "quarantined": 2,
    }


def test_what_is_whole_but_does_not_fit_is_refused_by_name_and_stays(found):
    save(found, 1)
    other = Training(base="llama")
    with pytest.raises(CheckpointError, match="of the base toy, not llama"):
        found.restore(1, other.learner, other.optimizer)
    made = Training()
    with pytest.raises(CheckpointError, match="AdamW"):
        found.restore(1, made.learner, torch.optim.SGD(made.learner.parameters()))
    assert found.newest() == 1


def test_restoring_a_broken_one_is_refused_by_name(found):
    save(found, 1)
    harm(found.path(1) / OPTIMIZER, "missing")
    made = Training()
    with pytest.raises(CheckpointError, match=f"{OPTIMIZER} is missing"):
        found.restore(1, made.learner, made.optimizer)


def test_a_step_that_is_there_is_not_written_again_unless_it_is_broken(found):
    save(found, 1)
    before = (found.path(1) / MANIFEST).stat().st_mtime_ns
    assert save(found, 1)
    assert (found.path(1) / MANIFEST).stat().st_mtime_ns == before
    harm(found.path(1) / WEIGHTS, "bit")
    assert save(found, 1)
    assert verify_folder(found.path(1)) is None
    assert (found.folder / QUARANTINE / "step-000001").is_dir()


def test_saving_is_due_by_steps_and_by_the_clock(found, monkeypatch):
    clock = 1000.0
    monkeypatch.setattr("luthier.runtime.checkpoints.time.monotonic", lambda: clock)
    by_steps = Checkpoints(found.folder, "toy", every=3)
    assert [step for step in range(1, 10) if by_steps.due(step, clock + 1e6)] == [3, 6, 9]
    by_clock = Checkpoints(found.folder, "toy", every=100, minutes=2, _attempted=clock)
    assert [by_clock.due(1, clock + seconds) for seconds in (0, 119, 120)] == [False, False, True]
    clock += 130
    save(by_clock, 1)
    assert [by_clock.due(2, clock + seconds) for seconds in (0, 119, 120)] == [False, False, True]


def test_a_disk_without_room_is_refused_before_training_with_path_need_and_free(found, monkeypatch):
    made = Training(1)
    one = checkpoint_bytes(made.learner, made.optimizer)
    monkeypatch.setattr(disk, "free_bytes", lambda _: 4 * one)
    found.check_room(made.learner, made.optimizer, 100)
    monkeypatch.setattr(disk, "free_bytes", lambda _: 3 * one)
    with pytest.raises(RequestError, match=r"room for 4 checkpoints is needed, 4\.2 MB; 3\.1 MB are free") as caught:
        found.check_room(made.learner, made.optimizer, 100)
    replace(found, keep_best=False).check_room(made.learner, made.optimizer, 100)
    assert str(found.folder) in str(caught.value)
    monkeypatch.undo()
    for step in (1, 2, 3):  # a resumed run needs room for the one that it writes
        save(found, step, best=1)
    monkeypatch.setattr(disk, "free_bytes", lambda _: one)
    found.check_room(made.learner, made.optimizer, 100)


def test_a_disk_without_room_stops_a_save_and_not_the_training_but_at_the_end_it_is_an_error(
    found, monkeypatch, capsys
):
    save(found, 1)
    monkeypatch.setattr(disk, "free_bytes", lambda _: 1000)
    assert save(found, 2) is False
    assert "step 2 could NOT be saved" in (said := capsys.readouterr().err)
    assert "the last checkpoint is step 1" in said
    with pytest.raises(DiskError, match="are free"):
        save(found, 3, must=True)
    assert list(found.status().values()) == [1, 2, 0]
    assert sorted(item.name for item in found.folder.iterdir()) == ["step-000001"]
    monkeypatch.undo()
    assert save(found, 3)
    assert found.newest() == 3


def test_the_size_of_a_checkpoint_is_foreseen_before_the_first_step(found):
    fresh, trained = Training(), Training(1)
    save(found, 1)
    real = sum(item.stat().st_size for item in found.path(1).iterdir())
    for made in (fresh, trained):
        foreseen = checkpoint_bytes(made.learner, made.optimizer)
        assert real <= foreseen <= real + disk._BESIDE
