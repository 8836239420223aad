"""Two processes over gloo: they score every row once, and train to the weights of one process."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from luthier.files import read_jsonl, sha256_file, verify_folder
from luthier.train.loop import train
from support import processes
from support.children import environment

WORLD = 2


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The folder that both processes worked in, and what each of them found."""
    folder = tmp_path_factory.mktemp("processes")
    place = {"WORLD_SIZE": str(WORLD), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "support.processes", str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
            env=environment(**place, RANK=str(rank), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(WORLD)),
        )
        for rank in range(WORLD)
    ]
    found = []
    try:
        for child in children:
            out, error = child.communicate(timeout=120)
            assert child.returncode == 0, error
            found.append(json.loads(out.splitlines()[-1]))
    finally:
        for child in children:
            child.kill()
    return folder, found


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The training of one process."""
    job = processes.job_of(tmp_path_factory.mktemp("alone"), processes.recipe())
    return job, train(job)


def same_weights(path: Path, job) -> None:
    found = load_file(str(path))
    assert found
    for name, p in job.learner.tuned():
        torch.testing.assert_close(found.pop(name), p.detach(), atol=1e-6, rtol=0)
    assert not found


def test_every_row_is_scored_once_and_as_by_one_process(pair):
    _, found = pair
    expected = processes.score(processes.recipe())
    parts = [one["scored"] for one in found]
    assert all(parts)
    assert sorted(parts[0] + parts[1]) == sorted(expected["scored"])
    assert len(parts[0] + parts[1]) == 7
    for one in found:
        assert one["sums"] == pytest.approx(expected["sums"], abs=1e-9, rel=0)
        assert one["weights"] == pytest.approx(expected["weights"], abs=1e-9, rel=0)
        assert one["mean"] == pytest.approx(expected["mean"], abs=1e-9, rel=0)


def test_training_ends_in_the_weights_of_one_process(pair, alone):
    folder, found = pair
    job, done = alone
    assert done.step == processes.STEPS
    for rank in range(WORLD):
        assert [found[rank][name] for name in ("steps", "rows", "tokens")] == [done.step, done.rows, done.tokens]
        same_weights(folder / f"own-{rank}.safetensors", job)
    assert sha256_file(folder / "own-0.safetensors") == sha256_file(folder / "own-1.safetensors")
    begun = processes.job_of(folder / "begun", processes.recipe())
    moved = [(p - q).abs().max() for (_, p), (_, q) in zip(job.learner.tuned(), begun.learner.tuned(), strict=True)]
    assert min(moved) > 1e-3  # else equal weights would say nothing


def test_the_record_is_that_of_one_process(pair, alone):
    folder, _ = pair
    mine, theirs = read_jsonl(folder / "own-0" / "metrics.jsonl"), read_jsonl(alone[0].metrics)
    assert [line["step"] for line in mine] == list(range(1, processes.STEPS + 1))
    for one, other in zip(mine, theirs, strict=True):
        for name in ("loss", "grad_norm"):
            assert one[name] == pytest.approx(other[name], rel=1e-5), (one["step"], name)
        assert one["tokens"] == other["tokens"]


def test_the_leading_process_alone_writes(pair):
    folder, _ = pair
    assert (folder / "own-0" / "metrics.jsonl").is_file()
    assert len(list((folder / "own-0" / "checkpoints").glob("step-*"))) == processes.STEPS
    assert not (folder / "own-1").exists()


def test_processes_draw_their_dropout_apart(pair):
    _, found = pair
    assert found[0]["draws"] != found[1]["draws"]


def test_a_stop_asked_of_one_stops_both_and_both_resume_to_the_weights_of_one_process(pair, tmp_path):
    folder, found = pair
    assert all(one["stopped"].startswith("stopped after step 3 of 6") for one in found)
    shared = folder / "shared"
    assert [line["step"] for line in read_jsonl(shared / "metrics.jsonl")] == list(range(1, processes.STEPS + 1))
    for step in range(1, processes.STEPS + 1):
        assert verify_folder(shared / "checkpoints" / f"step-{step:06d}") is None
    job = processes.shared_job(tmp_path)
    done = train(job)
    for rank in range(WORLD):
        assert found[rank]["best_step"] == done.best_step
        assert found[rank]["best_loss"] == pytest.approx(done.best_loss, rel=1e-6)
        same_weights(folder / f"shared-{rank}.safetensors", job)
    assert sha256_file(folder / "shared-0.safetensors") == sha256_file(folder / "shared-1.safetensors")
