"""Every operation of a save broken in every way: what is left resumes by itself, bit for bit, and saves again.

The controls save badly on purpose and must be caught; so the harness can fail.
"""

from __future__ import annotations

import itertools
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier import files
from luthier.errors import DiskError
from luthier.files import MANIFEST, append_jsonl, read_jsonl
from luthier.rundir import truncate_metrics
from luthier.runtime import checkpoints as module
from luthier.runtime.checkpoints import OPTIMIZER, OPTIMIZER_FACTS, QUARANTINE, STATE, Checkpoints
from support.children import environment
from support.faults import Disk, in_child
from support.powercut import after_power_cut, lay_out, snapshot
from support.tiny import SETTINGS, WEIGHTS, Training

HOWS = ("kill", "short", "ENOSPC", "EIO")
SAVED, REFUSED = 0, 3


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """A forked child has none of its parent's threads, and must not wait for them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def quick(tmp_path):
    """A folder in memory where there is one: an fsync costs nothing there, and its order is what is tested."""
    place = Path("/dev/shm") / f"luthier-faults-{os.getpid()}"
    if not os.access(place.parent, os.W_OK):
        return tmp_path
    place.mkdir()
    yield place
    shutil.rmtree(place)


def training(step: int) -> Training:
    """The tiny training after `step`; its best was step 1."""
    made = Training(step)
    made.state["best_step"] = 1 if step > 1 else step
    return made


def save(folder: Path, step: int, **options: bool) -> bool:
    made = training(step)
    return Checkpoints(folder, "toy").save(made.learner, made.optimizer, made.state, **options)


@dataclass
class Bench:
    """Three checkpoints are there (1 is the best, 3 is due to go), and step 5 is saved on a disk that breaks."""

    place: Path

    def __post_init__(self) -> None:
        self.ready = self.place / "ready"
        keep_all = Checkpoints(self.ready, "toy", keep=9)
        for step in (1, 3, 4):
            made = training(step)
            assert keep_all.save(made.learner, made.optimizer, made.state)
        self.before = snapshot(self.ready)
        self.digests = {step: training(step).digest() for step in range(8)}
        self.count = itertools.count()

    def fresh(self) -> Path:
        folder = self.place / f"{next(self.count)}"
        lay_out(self.before, folder)
        return folder

    def record(self, work: Callable[[Path], object]) -> Disk:
        """The operations of some work on a disk that is well."""
        folder = self.fresh()
        with Disk(folder).watched() as disk:
            work(folder)
        shutil.rmtree(folder)
        return disk

    def break_all(self, work: Callable[[Path], bool], trouble: Callable[[Path], str], most: int = 99) -> list[str]:
        """Break every operation of `work` in every way. Returns what did not survive, at most so many."""
        log, found, tried = self.record(work).log, [], 0
        for at, how in itertools.product(range(len(log)), HOWS):
            if how == "short" and log[at].kind != "write":
                continue
            folder, tried = self.fresh(), tried + 1
            code = in_child(partial(self._broken, work, Disk(folder, at, how)))
            wrong = trouble(folder)
            if how in ("kill", "short"):
                wrong = wrong or (f"was not killed: {code}" if code is not None else "")
            elif code not in (SAVED, REFUSED):
                wrong = wrong or f"training was stopped: {code}"
            if wrong:
                found.append(f"{how} at {at}, {log[at].kind} {log[at].path.name}: {wrong}")
            shutil.rmtree(folder)
            if len(found) == most:
                break
        print(f"{tried - len(found)} of {tried} faults survived ({len(log)} operations)")
        self.tried = tried
        return found

    @staticmethod
    def _broken(work: Callable[[Path], bool], disk: Disk) -> int:
        with disk.watched():
            return SAVED if work(disk.root) else REFUSED

    def cut_all(self, work: Callable[[Path], object], trouble: Callable[[Path], str], most: int = 99) -> list[str]:
        """Cut the power at every moment of `work`. Returns what did not survive, at most so many."""
        disk, found = self.record(work), []
        trees = after_power_cut(self.before, disk.root, disk.log, tries=12)
        for tree in trees:
            folder = self.place / "cut"
            lay_out(tree, folder)
            if wrong := trouble(folder):
                found.append(wrong)
            shutil.rmtree(folder)
            if len(found) == most:
                break
        print(f"{len(trees) - len(found)} of {len(trees)} states after a power cut survived")
        self.tried = len(trees)
        return found

    def trouble(self, folder: Path) -> str:
        """What keeps a training from going on in `folder` as if nothing had been; empty for nothing."""
        found = Checkpoints(folder, "toy")
        step = found.newest()
        if step not in (4, 5):
            return f"the newest is {step}"
        kept = found.steps()
        if not {1, 4} <= set(kept):
            return f"there are only {kept}"
        if step == 4 and 3 not in kept:
            return "the oldest was deleted before its successor was there"
        if left := {item.name for item in folder.iterdir()} - {f"step-{one:06d}" for one in kept}:
            return f"left behind: {left}"
        for one in kept:
            made = Training()
            made.state = found.restore(one, made.learner, made.optimizer)
            if made.digest() != self.digests[one]:
                return f"step {one} came back changed"
        for one in (5, 6):
            if not save(folder, one):
                return f"step {one} cannot be saved"
        if found.newest() != 6 or found.steps() != [1, 5, 6]:
            return f"afterwards there are {found.steps()}"
        return ""


def save_five(folder: Path) -> bool:
    return save(folder, 5)


def test_a_save_survives_every_fault_at_every_operation(quick):
    bench = Bench(quick)
    assert bench.break_all(save_five, bench.trouble) == []
    assert bench.tried >= 100


def test_a_power_cut_at_any_moment_of_a_save_leaves_the_old_or_the_new(quick):
    bench = Bench(quick)
    assert bench.cut_all(save_five, bench.trouble) == []
    assert bench.tried >= 100


def harm(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
        return
    data[len(data) // 2] ^= 1
    path.write_bytes(
        {"empty": b"", "nul": bytes(len(data)), "half": bytes(data[: len(data) // 2]), "bit": bytes(data)}[how]
    )


def fallen_back(bench: Bench, folder: Path) -> str:
    """What keeps `folder`, whose step 4 is harmed, from going on at step 3."""
    found = Checkpoints(folder, "toy")
    if (step := found.newest()) != 3:
        return f"the newest is {step}"
    if {item.name for item in folder.iterdir()} - {"step-000001", "step-000003", QUARANTINE}:
        return "left behind"
    made = Training()
    made.state = found.restore(3, made.learner, made.optimizer)
    return "" if made.digest() == bench.digests[3] and save(folder, 4) and found.newest() == 4 else "does not go on"


@pytest.mark.parametrize("how", ["missing", "empty", "nul", "half", "bit"])
@pytest.mark.parametrize("name", [WEIGHTS, SETTINGS, OPTIMIZER, OPTIMIZER_FACTS, STATE, MANIFEST])
def test_a_harmed_file_of_the_newest_is_set_aside_with_its_reason(quick, name, how, capsys):
    bench = Bench(quick)
    folder = bench.fresh()
    harm(folder / "step-000004" / name, how)
    assert fallen_back(bench, folder) == ""
    (reason,) = read_jsonl(folder / QUARANTINE / "reasons.jsonl")
    assert reason["folder"] == "step-000004"
    assert name in reason["reason"]
    assert reason["reason"] in capsys.readouterr().err


def test_a_bit_flipped_anywhere_in_the_manifest_never_gives_wrong_weights(quick):
    bench = Bench(quick)
    size = len(bench.before[f"step-000004/{MANIFEST}"] or b"")
    for place in range(size):
        folder = bench.fresh()
        path = folder / "step-000004" / MANIFEST
        data = bytearray(path.read_bytes())
        data[place] ^= 1 << place % 7
        path.write_bytes(data)
        found = Checkpoints(folder, "toy")
        step = found.newest()
        assert step in (3, 4)
        made = Training()
        made.state = found.restore(step, made.learner, made.optimizer)
        assert made.digest() == bench.digests[step]
        shutil.rmtree(folder)


def test_going_back_survives_every_fault_too(quick):
    bench = Bench(quick)
    harm(bench.ready / "step-000004" / OPTIMIZER, "half")
    (bench.ready / ".tmp-step-000005-abc").mkdir()
    (bench.ready / ".tmp-step-000005-abc" / WEIGHTS).write_bytes(b"half")
    bench.before = snapshot(bench.ready)

    def go_back(folder: Path) -> bool:
        try:
            return Checkpoints(folder, "toy").newest() == 3
        except DiskError:
            return False

    assert bench.break_all(go_back, lambda folder: fallen_back(bench, folder)) == []
    assert bench.cut_all(go_back, lambda folder: fallen_back(bench, folder)) == []


def test_a_line_of_metrics_is_whole_or_not_there(quick):
    """What a kill tears is cut away on resuming; what a full disk tears, at once."""
    bench = Bench(quick)
    line = '{"step": 1}\n'
    (bench.ready / "metrics.jsonl").write_text(line)
    bench.before = snapshot(bench.ready)

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


# Saves that are wrong on purpose. Each names the module it changes, what in it, and the change.


@contextmanager
def in_place(path: Path, about: dict[str, Any], *_: Any) -> Iterator[Path]:
    """Straight into its place, sealed afterwards."""
    path.mkdir()
    yield path
    files._seal(path, about, MANIFEST, durable=True)


@contextmanager
def unsealed(path: Path, about: dict[str, Any], *_: Any) -> Iterator[Path]:
    """Straight into its place, with a manifest that says nothing."""
    path.mkdir()
    facts = dict.fromkeys((OPTIMIZER, OPTIMIZER_FACTS, STATE))
    files.write_json(path / MANIFEST, {**about, "files": facts})
    yield path


def deletes_first(self: Checkpoints, step: int, *rest: Any) -> None:
    for old in self.steps()[:-1]:
        files.remove_folder(self.path(old))
    write(self, step, *rest)


def stops_on_a_full_disk(self: Checkpoints, step: int, *rest: Any) -> None:
    try:
        write(self, step, *rest)
    except DiskError as error:
        raise RuntimeError from error


write = Checkpoints._write
CONTROLS = {
    "no temporary name": [(module, "atomic_folder", in_place)],
    "no digests": [(module, "atomic_folder", unsealed), (module, "verify_folder", lambda *_, **__: None)],
    "emptied in place": [(module, "remove_folder", shutil.rmtree)],
    "deleted before the successor": [(Checkpoints, "_write", deletes_first)],
    "a full disk stops training": [(Checkpoints, "_write", stops_on_a_full_disk)],
    "leftovers stay": [(module, "remove_leftovers", lambda _: None)],
}


@pytest.mark.parametrize("name", CONTROLS)
def test_control_a_save_that_is_wrong_is_caught(quick, monkeypatch, name):
    bench = Bench(quick)
    for place, what, change in CONTROLS[name]:
        monkeypatch.setattr(place, what, change)
    assert bench.break_all(save_five, bench.trouble, most=1) != []


@pytest.mark.parametrize("missing", ["files", "names"])
def test_control_a_save_that_pushes_nothing_to_the_disk_is_caught(quick, monkeypatch, missing):
    bench, sync = Bench(quick), files._sync
    monkeypatch.setattr(files, "_sync", lambda path: None if path.is_dir() is (missing == "names") else sync(path))
    assert bench.cut_all(save_five, bench.trouble, most=1) != []


def test_twenty_kills_at_random_moments_of_a_training_that_saves_each_step(tmp_path):
    """Real SIGKILLs, on a real disk, at moments that nobody chose."""
    rng, folder, digests = random.Random(0), tmp_path / "checkpoints", [Training(0).digest()]
    reached = 0

    def train() -> None:
        made, found = Training(), Checkpoints(folder, "toy")
        if step := found.newest():
            made.state = found.restore(step, made.learner, made.optimizer)
        while True:
            made.advance()
            found.save(made.learner, made.optimizer, made.state)

    for _ in range(20):
        child = os.fork()
        if child == 0:
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                train()
            finally:
                os._exit(1)
        time.sleep(rng.uniform(0.02, 0.1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = Checkpoints(folder, "toy")
        step = found.newest() or 0
        assert step >= reached
        reached, made = step, Training()
        if step:
            made.state = found.restore(step, made.learner, made.optimizer)
        while len(digests) <= step:
            digests.append(Training(len(digests)).digest())
        assert made.digest() == digests[step]
        assert not (folder / QUARANTINE).exists()
    assert reached >= 20
    print(f"20 kills survived, {reached} steps saved")


def test_a_limit_that_the_system_itself_sets_leaves_the_old_one(quick):
    """RLIMIT_FSIZE: the write itself fails, in Python and in safetensors' own writer."""
    bench = Bench(quick)
    folder = bench.fresh()

    def child() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
        return SAVED if save(folder, 5) else REFUSED

    assert in_child(child) == REFUSED
    assert bench.trouble(folder) == ""


FULL_DISK = """
import subprocess, sys
from pathlib import Path
import luthier.runtime.checkpoints as module
from luthier.errors import DiskError
from support.tiny import Training

folder = Path(sys.argv[1])
if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], stderr=subprocess.DEVNULL).returncode:
    sys.exit(77)
if sys.argv[2] == "unforeseen":
    module.check_room_to_save = lambda *_: None
else:
    import luthier.runtime.disk as disk
    disk._BESIDE = 16_000
found = module.Checkpoints(folder / "checkpoints", "toy")
made = Training(1)
assert found.save(made.learner, made.optimizer, made.state)
(folder / "filler").write_bytes(bytes(1))
with (folder / "filler").open("wb", buffering=0) as stream:
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
assert found.status() == {"saved": 1, "failed_saves": 2, "quarantined": 0}
assert found.newest() == 1 and [item.name for item in (folder / "checkpoints").iterdir()] == ["step-000001"]
(folder / "filler").unlink()
made.advance()
assert found.save(made.learner, made.optimizer, made.state)
assert found.newest() == 3
"""


@pytest.mark.parametrize("way", ["foreseen", "unforeseen"])
def test_a_disk_that_is_really_full(tmp_path, way):
    """A disk of 64 KiB in memory, in a namespace of the child's own."""
    words = ["unshare", "-rm", sys.executable, "-c", FULL_DISK, str(tmp_path), way]
    if shutil.which("unshare") is None:
        pytest.skip("no unshare here")
    path = os.pathsep.join([environment()["PYTHONPATH"], str(Path(__file__).parents[1])])
    done = subprocess.run(words, capture_output=True, text=True, env=environment(PYTHONPATH=path))
    if done.returncode == 77 or "unshare failed" in done.stderr or "Operation not permitted" in done.stderr:
        pytest.skip("a small disk cannot be made here")
    assert done.returncode == 0, done.stderr
    assert ("No space left" if way == "unforeseen" else "are free") in done.stdout
    assert "training goes on" in done.stderr
