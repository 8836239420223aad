"""Workers of a feed hear only their parent: a stop of the whole group is the parent's business."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from support.children import environment

CHILD = """
import os, sys
import torch
from luthier.models.feeds import Feed, stream
from luthier.runtime.interrupts import stop_requested

size, leaves = int(sys.argv[1]), sys.argv[2]

class Numbers(Feed):
    steps_per_epoch = 10**6
    def rows(self, step):
        return [step]
    def batches(self, step, halvings=0):
        return [(os.getpid(), step, "x" * size, torch.zeros(4))]

kept = []
with stop_requested() as stopping:
    print("begin", flush=True)
    steps = stream(Numbers(), 1, 10**6, workers=2)
    kept += [steps] if leaves == "open" else []
    for at, ((worker, step, *_),) in enumerate(steps, 1):
        assert at == step
        print(worker, flush=True)
        if stopping():
            break
    del steps
print("saved", step, flush=True)
"""
FULL_PIPE = 300_000
"""Bytes of a batch that fill a worker's pipe (64 KiB) at once."""

Child = subprocess.Popen[str]


def begin(tmp_path: Path, size: int = 10, leaves: str = "closed") -> Child:
    """The program in a group of its own."""
    (tmp_path / "child.py").write_text(CHILD)
    words = [sys.executable, str(tmp_path / "child.py"), str(size), leaves]
    out, err = (tmp_path / "out").open("w"), (tmp_path / "err").open("w")
    with out, err:
        return subprocess.Popen(words, stdout=out, stderr=err, env=environment(), start_new_session=True, text=True)


@pytest.fixture
def ended() -> Iterator[list[Child]]:
    """Programs whose groups a test leaves nothing of, whatever it finds."""
    made: list[Child] = []
    yield made
    for child in made:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def lines(tmp_path: Path, least: int) -> list[str]:
    deadline = time.monotonic() + 60
    while len(found := (tmp_path / "out").read_text().split("\n")) <= least:
        assert time.monotonic() < deadline, (tmp_path / "err").read_text()
        time.sleep(0.005)
    return found[:-1]


def workers_of(found: list[str]) -> set[int]:
    return {int(line) for line in found if line.isdigit()}


def lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def gone_within(workers: set[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(lives, workers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(lives, workers))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("size", "leaves"), [(10, "closed"), (FULL_PIPE, "closed"), (10, "open")])
def test_a_signal_to_the_whole_group_ends_the_step_in_hand_and_not_the_workers(tmp_path, ended, number, size, leaves):
    """Also where the stream is still open when the program ends."""
    child = begin(tmp_path, size, leaves)
    ended.append(child)
    workers = workers_of(lines(tmp_path, 6))
    assert len(workers) == 2
    os.killpg(child.pid, number)
    assert child.wait(30) == 0, (tmp_path / "err").read_text()
    assert lines(tmp_path, 7)[-1].startswith("saved ")
    assert (tmp_path / "err").read_text() == ""
    assert gone_within(workers, 5)


def test_a_signal_while_the_workers_are_being_made_is_no_other(tmp_path, ended):
    for wait in (0.0, 0.002, 0.004):
        child = begin(tmp_path)
        ended.append(child)
        lines(tmp_path, 1)
        children = Path(f"/proc/{child.pid}/task/{child.pid}/children")
        while not children.read_text():
            pass
        time.sleep(wait)
        os.killpg(child.pid, signal.SIGTERM)
        assert child.wait(30) == 0, (tmp_path / "err").read_text()
        assert lines(tmp_path, 3)[-1].startswith("saved ")


@pytest.mark.parametrize("size", [10, FULL_PIPE])
def test_workers_do_not_outlive_a_parent_that_was_killed(tmp_path, ended, size):
    child = begin(tmp_path, size)
    ended.append(child)
    workers = workers_of(lines(tmp_path, 6))
    assert all(map(lives, workers))
    child.kill()
    child.wait()
    assert gone_within(workers, 5)
