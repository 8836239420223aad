"""kill -9 in the second stage, then --resume: the same bytes and scores as a run that nobody touched."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from luthier.data.simulate import write_forms
from luthier.errors import CheckpointError
from luthier.files import sha256_file
from luthier.models.package import Package

RECIPE = Path(__file__).parents[1] / "recipes" / "quickstart.yaml"


def _command(data: Path, out: Path, *more: str) -> list[str]:
    sets = [
        f"data.sources.{name}.path={path}" for name, path in ((p.stem, p) for p in sorted(data.glob("form-*.parquet")))
    ]
    sets += [
        "train.epochs=6",
        "train.save_every=2",
        "train.log_every=1",
        "train.batch_size=8",
        "train.micro_batch_size=4",
        "evaluate.resamples=50",
    ]
    return [
        sys.executable,
        "-m",
        "luthier.cli",
        "run",
        str(RECIPE),
        "--out",
        str(out),
        *(word for item in sets for word in ("--set", item)),
        *more,
    ]


def _kill_when(process: subprocess.Popen[bytes], metrics: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and f'"step": {step},' in metrics.read_text()):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kill")
    write_forms(folder / "data", sizes={"1764": (24, 12), "1964": (48, 12)})
    subprocess.run(_command(folder / "data", folder / "whole"), check=True, capture_output=True)
    return folder


def test_killed_in_stage_two_and_resumed_ends_in_the_same_bytes(untouched):
    folder = untouched
    process = subprocess.Popen(_command(folder / "data", folder / "killed"), stderr=subprocess.DEVNULL)
    _kill_when(process, folder / "killed" / "stages" / "1964" / "metrics.jsonl", 5)
    assert not (folder / "killed" / "stages" / "1964" / "stage.json").exists()
    first_stage = sha256_file(folder / "killed" / "stages" / "1764" / "stage.json")
    subprocess.run(_command(folder / "data", folder / "killed", "--resume"), check=True, capture_output=True)
    assert sha256_file(folder / "killed" / "stages" / "1764" / "stage.json") == first_stage  # was not run again
    for stage in ("1764", "1964"):
        for name in (
            "adapter/adapter_model.safetensors",
            "adapter/adapter_config.json",
            "scores.json",
            "predictions.jsonl",
        ):
            one, two = (folder / run / "stages" / stage / name for run in ("whole", "killed"))
            assert sha256_file(one) == sha256_file(two), f"{stage}/{name}"


def test_an_adapter_harmed_on_disk_is_set_aside_and_made_again_from_its_checkpoint(untouched):
    folder = untouched
    shutil.copytree(folder / "whole", folder / "harmed")
    stage = folder / "harmed" / "stages" / "1964"
    (stage / "stage.json").unlink()  # as a kill between the adapter and the record leaves it
    weights = stage / "adapter" / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match="not what was written"):
        Package.read(stage / "adapter")
    words = _command(folder / "data", folder / "harmed", "--resume")
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    assert "set aside" in done.stderr
    assert sha256_file(weights) == sha256_file(folder / "whole" / "stages" / "1964" / "adapter" / weights.name)
    assert (stage / "stage.json").is_file()
