"""Checkpoints that were harmed, disks that are full, kills at random: training goes on by itself."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from luthier import files
from luthier.files import MANIFEST, read_jsonl
from luthier.runtime.checkpoints import OPTIMIZER, OPTIMIZER_FACTS, QUARANTINE, STATE, Checkpoints
from support.children import environment
from support.faultbench import REFUSED, SAVED, harm, save_five
from support.faults import in_child
from support.tiny import SETTINGS, WEIGHTS, Training


@pytest.mark.parametrize("how", ["missing", "empty", "nul", "half", "bit"])
@pytest.mark.parametrize("name", [WEIGHTS, SETTINGS, OPTIMIZER, OPTIMIZER_FACTS, STATE, MANIFEST])
def test_a_harmed_file_of_the_newest_is_set_aside_with_its_reason(bench, name, how, capsys):
    harm(bench.ready / "step-000004" / name, how)
    assert bench.trouble_going_back(bench.ready) == ""
    (found,) = read_jsonl(bench.ready / QUARANTINE / "reasons.jsonl")
    assert found["folder"] == "step-000004"
    assert name in found["reason"] or (name, how) == (MANIFEST, "bit")  # the bit is in the digest of another file
    assert found["reason"] in capsys.readouterr().err


def test_a_bit_flipped_anywhere_in_the_manifest_never_gives_wrong_weights(bench):
    for place in range((bench.ready / "step-000004" / MANIFEST).stat().st_size):
        folder = bench.fresh()
        path = folder / "step-000004" / MANIFEST
        data = bytearray(path.read_bytes())
        data[place] ^= 1 << place % 8
        path.write_bytes(data)
        found = Checkpoints(folder, "toy")
        step = found.newest()
        assert step in (3, 4)
        assert bench.comes_back(found, step)
        shutil.rmtree(folder)


def test_a_disk_that_cannot_read_a_new_checkpoint_back_keeps_the_old_ones(bench, monkeypatch):
    def broken(path: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files, "_forget", broken)
    assert save_five(bench.ready) is False
    assert Checkpoints(bench.ready, "toy").steps() == [1, 3, 4]
    (found,) = read_jsonl(bench.ready / QUARANTINE / "reasons.jsonl")
    assert "cannot be read back" in found["reason"]


def test_a_limit_that_the_system_itself_sets_leaves_the_old_one(bench):
    """RLIMIT_FSIZE: the write itself fails, in Python and in safetensors' own writer."""
    for limit in (0, 100, 300, 600):
        folder = bench.fresh()

        def child(folder: Path = folder, limit: int = limit) -> int:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            return SAVED if save_five(folder) else REFUSED

        assert in_child(child) == REFUSED
        assert bench.trouble(folder) == ""


def test_twenty_kills_at_random_moments_of_a_training_that_saves_each_step(bench, tmp_path):
    """Real SIGKILLs, on a real disk, at moments that nobody chose."""
    rng, folder, digests = random.Random(0), tmp_path / "checkpoints", [Training(0).digest()]
    found, reached = Checkpoints(folder, "toy"), 0

    def train() -> int:
        made = Training()
        if step := found.newest():
            made.state = found.restore(step, made.learner, made.optimizer)
        while True:
            made.advance()
            found.save(made.learner, made.optimizer, made.state)

    for _ in range(20):
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            try:
                train()
            finally:
                os._exit(1)
        time.sleep(rng.uniform(0.03, 0.2))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        step, made = found.newest() or 0, Training()
        assert step >= reached
        reached = step
        if step:
            made.state = found.restore(step, made.learner, made.optimizer)
        while len(digests) <= step:
            digests.append(Training(len(digests)).digest())
        assert made.digest() == digests[step]
        assert not (folder / QUARANTINE).exists()
    assert reached >= 2
    print(f"20 of 20 kills survived, {reached} steps saved")


FULL_DISK = """
import subprocess, sys
from pathlib import Path

folder = Path(sys.argv[1])
if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "none", folder], stderr=subprocess.DEVNULL).returncode:
    sys.exit(77)

import luthier.runtime.checkpoints as module, luthier.runtime.disk as disk
from luthier.errors import DiskError
from support.tiny import Training

disk._BESIDE = 12_000
found, made, filler = module.Checkpoints(folder / "checkpoints", "toy"), Training(1), folder / "filler"
assert found.save(made.learner, made.optimizer, made.state)
for foreseen in (True, False):
    if not foreseen:
        module.check_room_to_save = lambda *_: None
    before, step = found.steps(), made.state["step"]
    with filler.open("wb", buffering=0) as stream:
        try:
            while stream.write(bytes(4096)):
                pass
        except OSError:
            pass
    made.advance()
    assert found.save(made.learner, made.optimizer, made.state) is False
    try:
        found.save(made.learner, made.optimizer, made.state, must=True)
        raise SystemExit("a save that must be done failed in silence")
    except DiskError as error:
        print(error)
    assert found.newest() == step and found.steps() == before
    filler.unlink()
    assert found.save(made.learner, made.optimizer, made.state) and found.newest() == step + 1
assert list(found.status().values()) == [3, 4, 0]
"""


def test_a_disk_that_is_really_full_stops_no_training(tmp_path):
    """A disk of 160 KiB in memory, in a namespace of the child's own."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare here")
    path = os.pathsep.join([environment()["PYTHONPATH"], str(Path(__file__).parents[1])])
    words = ["unshare", "-rm", sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(PYTHONPATH=path))
    if done.returncode == 77 or done.stderr.startswith("unshare:"):
        pytest.skip("a small disk cannot be made here")
    assert done.returncode == 0, done.stderr
    assert "are free" in done.stdout
    assert "No space left" in done.stdout
    assert done.stderr.count("training goes on") == 2
