"""A run on pictures with stored vectors learns what a run without learns, and resumes to the same bytes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from luthier import verbs
from luthier.files import read_json, read_jsonl, sha256_file
from support.sightings import picture

RECIPE = """
name: small-pictures
model: {base: "toy:smolvlm", max_tokens: 512, lora: {r: 4}}
data:
  sources: {cards: {path: CARDS}}
  train: [cards]
  test: []
  validation_fraction: 0.2
task: {kind: chat}
train: {epochs: 3, batch_size: 6, micro_batch_size: 3, learning_rate: 3.0e-3, log_every: 1, save_every: 4}
evaluate: {resamples: 50, samples: 1, sample_tokens: 4}
"""
COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cards")
    with (folder / "cards.jsonl").open("w") as stream:
        for number in range(30):
            picture(40 + number, 60 - number, number).save(folder / f"{number}.png")
            record = {"image": f"{number}.png", "text": f"a {COLOURS[number % 3]} card, number {number}"}
            stream.write(json.dumps(record) + "\n")
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.replace("CARDS", str(folder / "cards.jsonl")))
    return path


def run(recipe: Path, out: Path, *overrides: str, **more: bool) -> Path:
    verbs.run(recipe, out, list(overrides), **more)
    return out


@pytest.fixture(scope="module")
def stored(recipe, tmp_path_factory) -> Path:
    return run(recipe, tmp_path_factory.mktemp("stored") / "run", "train.feature_store=on")


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_jsonl(run / "stages" / "main" / "metrics.jsonl") if "loss" in row]


def adapter(run: Path) -> str:
    return sha256_file(run / "stages" / "main" / "adapter" / "adapter_model.safetensors")


def test_losses_and_scores_are_those_of_a_run_without_a_store(recipe, stored, tmp_path):
    live = run(recipe, tmp_path / "live", "train.feature_store=off")
    assert len(losses(live)) == 12
    assert losses(stored) == pytest.approx(losses(live), rel=1e-5)
    assert len(list((stored / "features").glob("image-*/00000.raw"))) == 1
    assert not list((live / "features").glob("image-*"))
    assert read_json(live / "features" / "decision.json")["main/image"]["use"] is False
    scores = [read_json(run / "stages" / "main" / "scores.json")["loss"]["value"] for run in (stored, live)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("data.augment.crop=0.3", "train.max_steps=6")])
def test_worker_processes_read_the_store_and_augment_as_one_process_does(recipe, tmp_path, more):
    overrides = ("train.feature_store=on", *more)
    alone = run(recipe, tmp_path / "alone", *overrides)
    helped = run(recipe, tmp_path / "helped", *overrides, "train.workers=2")
    assert losses(helped) == losses(alone)
    assert adapter(helped) == adapter(alone)


def test_a_resumed_run_whose_store_was_torn_ends_in_the_same_bytes(recipe, stored, tmp_path):
    again = tmp_path / "run"
    shutil.copytree(stored, again)
    stage = again / "stages" / "main"
    for item in (stage / "adapter", stage / "stage.json", sorted((stage / "checkpoints").glob("step-*"))[-1]):
        shutil.rmtree(item) if item.is_dir() else item.unlink()
    (index,) = again.glob("features/image-*/index.jsonl")
    os.truncate(index, index.stat().st_size // 2)
    run(recipe, again, "train.feature_store=on", resume=True)
    assert adapter(again) == adapter(stored)
    assert losses(again) == losses(stored)


def test_augmented_rows_are_encoded_anew_and_the_run_says_so(recipe, stored, tmp_path, capsys):
    changed = run(recipe, tmp_path / "run", "train.feature_store=on", "data.augment.crop=0.3", "train.max_steps=6")
    assert "training rows are augmented" in capsys.readouterr().err
    assert losses(changed)[0] != pytest.approx(losses(stored)[0], rel=1e-6)
    (index,) = changed.glob("features/image-*/index.jsonl")
    (whole,) = stored.glob("features/image-*/index.jsonl")
    assert 0 < len(read_jsonl(index)) < len(read_jsonl(whole)) == 30
