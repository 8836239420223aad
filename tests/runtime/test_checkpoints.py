"""Checkpoints: sealed, verified, rotated, and refused when they do not fit."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.errors import CheckpointError, DiskError
from luthier.files import MANIFEST, read_json, verify_folder
from luthier.runtime.checkpoints import OPTIMIZER, Checkpoints
from support.jobs import make_job, recipe


@pytest.fixture
def job(tmp_path):
    made = make_job(tmp_path / "run", recipe(), rows=4)
    for parameter in made.model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, 0.01)
    made.optimizer.step()
    return made


def _save(job, step, **state):
    job.checkpoints.save(job.model, job.optimizer, {"step": step, **state})


def test_the_manifest_covers_every_file_and_names_no_secret(job):
    _save(job, 1)
    folder = job.checkpoints.path(1)
    manifest = read_json(folder / MANIFEST)
    written = {item.name for item in folder.iterdir()} - {MANIFEST}
    assert (
        set(manifest["files"])
        == written
        >= {"adapter_model.safetensors", "adapter_config.json", OPTIMIZER, "state.json"}
    )
    assert verify_folder(folder) is None


def test_rotation_keeps_the_newest_two_and_the_best(job):
    for step in range(1, 7):
        _save(job, step, best_step=2 if step >= 2 else 0)
    assert Checkpoints(job.checkpoints.folder, "b", 2).steps() == [1, 2, 3, 4, 5, 6]  # keep=100 kept them all
    job.checkpoints.keep = 2
    _save(job, 7, best_step=2)
    assert job.checkpoints.steps() == [2, 6, 7]


@pytest.mark.parametrize("harm", ["zero", "nul", "missing", "flip", "manifest"])
def test_a_harmed_checkpoint_is_never_used(job, harm):
    _save(job, 1)
    _save(job, 2)
    folder = job.checkpoints.path(2)
    victim = folder / (MANIFEST if harm == "manifest" else "adapter_model.safetensors")
    data = bytearray(victim.read_bytes())
    if harm == "missing":
        victim.unlink()
    else:
        data[len(data) // 2] ^= 1
        victim.write_bytes({"zero": b"", "nul": bytes(len(data)), "flip": bytes(data), "manifest": b"{"}[harm])
    assert job.checkpoints.newest() == 1
    assert not folder.exists()


def test_a_full_disk_leaves_the_old_checkpoint_and_nothing_half_written(job, monkeypatch):
    _save(job, 1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("luthier.runtime.checkpoints.write_json", full)
    with pytest.raises(DiskError, match="No space left"):
        _save(job, 2)
    assert job.checkpoints.newest() == 1
    assert sorted(item.name for item in job.checkpoints.folder.iterdir()) == ["step-000001"]


def test_restoring_gives_back_every_bit(job, tmp_path):
    _save(job, 1, note="x")
    other = make_job(tmp_path / "other", recipe(), rows=4)
    state = Checkpoints(job.checkpoints.folder, "b").restore(1, other.model, other.optimizer)
    assert state == {"step": 1, "note": "x"}
    for (name, one), (_, two) in zip(job.model.named_parameters(), other.model.named_parameters(), strict=True):
        assert torch.equal(one, two), name
    for one, two in zip(job.optimizer.state.values(), other.optimizer.state.values(), strict=True):
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_renamed_key_is_refused_by_name(job, tmp_path):
    _save(job, 1)
    path = job.checkpoints.path(1) / "adapter_model.safetensors"
    tensors = load_file(path)
    key = next(name for name in sorted(tensors) if "layers.0" in name)
    tensors[key.replace("layers.0", "layers.9")] = tensors.pop(key)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"layers\.[09]"):
        job.checkpoints.restore(1, job.model, job.optimizer)
