"""A chat run over pictures by the command line: what it leaves, and that it goes on after kill -9 in the same bytes."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from luthier.files import sha256_file
from support.chats import WORDS
from support.children import environment
from support.sightings import picture

STEPS = 6
RECIPE = """
name: small-pictures
model: {base: "BASE", max_tokens: 512, lora: {r: 4, dropout: 0.1}}
data:
  sources: {pictures: {path: ROWS}}
  train: [pictures]
  test: []
  validation_fraction: 0.2
  augment: {crop: 0.2, colour: 0.3}
task: {kind: chat}
train: {max_steps: 6, batch_size: 4, micro_batch_size: 2, learning_rate: 3.0e-3, log_every: 1, save_every: 1}
evaluate: {resamples: 20, samples: 1, sample_tokens: 4}
"""


def write_recipe(folder: Path, base: str) -> Path:
    """Rows with none, one and several pictures."""
    rng, folder = random.Random(3), folder / base.replace(":", "-")
    folder.mkdir()
    with (folder / "rows.jsonl").open("w") as stream:
        for number in range(40):
            names = [f"{number}-{place}.png" for place in range(number % 4)]
            for name in names:
                picture(*rng.choices(range(20, 120), k=2), seed=number).save(folder / name)
            parts = [{"type": "image", "path": name} for name in names]
            parts.append({"type": "text", "text": f"{' '.join(rng.choices(WORDS, k=4))} {number}"})
            turns = [("user", parts), ("assistant", " ".join(rng.choices(WORDS, k=3)))]
            messages = [{"role": role, "content": content} for role, content in turns]
            stream.write(json.dumps({"messages": messages}) + "\n")
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.replace("ROWS", str(folder / "rows.jsonl")).replace("BASE", base))
    return path


def command(recipe: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "luthier.cli", "run", str(recipe), "--out", str(out), *more]


def call(recipe: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(recipe, out, *more), capture_output=True, text=True, timeout=240, env=environment(), check=False
    )


@pytest.fixture(
    scope="module",
    params=[
        "toy:qwen2-vl",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("toy:phi3-vision", "toy:gemma3-vision")),
    ],
)
def walk(request, tmp_path_factory) -> tuple[Path, Path, str]:
    """A recipe, its finished run, and what the run said."""
    folder = tmp_path_factory.mktemp("pictures")
    recipe = write_recipe(folder, request.param)
    done = call(recipe, folder / "run")
    assert done.returncode == 0, done.stderr
    return recipe, folder / "run", done.stderr


def kept(run: Path) -> dict[str, object]:
    """What a training leaves, but for the clock."""
    stage = run / "stages" / "main"
    lines = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    return {
        "adapter": sha256_file(stage / "adapter" / "adapter_model.safetensors"),
        "metrics": [{**line, "seconds": 0} for line in lines],
        "scores": (stage / "scores.json").read_text(),
        "predictions": (stage / "predictions.jsonl").read_text(),
    }


def test_a_run_learns_from_rows_with_pictures_and_says_how_many_tokens_they_take(walk):
    _, run, said = walk
    found = kept(run)
    assert [line["step"] for line in found["metrics"]] == list(range(1, STEPS + 1))
    assert "media in them take" in said
    record = json.loads((run / "stages" / "main" / "stage.json").read_text())
    assert record["trained"]["effect"] > 0
    assert record["trained"]["learning"]["still"] == []
    scores = json.loads(found["scores"])
    assert scores["loss"]["n"] == len(found["predictions"].splitlines())
    [lessons] = (run / "tokens").glob("train-*")
    assert len(np.load(lessons / "media.npy")) > 20


def test_killed_moved_and_resumed_it_ends_in_the_same_bytes(walk, tmp_path):
    recipe, untouched, _ = walk
    out = tmp_path / "first-place"
    process = subprocess.Popen(command(recipe, out), stderr=subprocess.DEVNULL, env=environment())
    metrics, step = out / "stages" / "main" / "metrics.jsonl", random.Random().randint(1, STEPS - 2)
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and f'"step": {step},' in metrics.read_text()):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    moved = tmp_path / "another-place"
    shutil.move(out, moved)
    done = call(recipe, moved, "--resume", "--verify")
    assert done.returncode == 0, done.stderr
    assert kept(moved) == kept(untouched)
