"""Chat recipes that cannot work are told before anything is trained, all at once, with a mend each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.errors import RecipeError
from luthier.recipefile import load_recipe, stage_recipes
from luthier.stages.preflight import look_ahead, look_at_rows
from support.chats import WORDS
from support.children import environment

RECIPE = """
name: trouble
model: {base: "toy:llama", max_tokens: 256}
data:
  sources: {chats: {path: CHATS}, others: {path: OTHERS}}
  train: [chats]
  test: [others]
task: {kind: chat}
train: {max_steps: 2, batch_size: 4, micro_batch_size: 2}
"""


def write(path: Path, count: int, words: str) -> Path:
    with path.open("w") as stream:
        for number in range(count):
            asked = f"{words} {WORDS[number % len(WORDS)]} {WORDS[number // len(WORDS)]} {number}"
            turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": f"answer {number}"}]
            stream.write(json.dumps({"conversations": turns}) + "\n")
    return path


@pytest.fixture
def recipe(tmp_path) -> Path:
    chats, others = write(tmp_path / "chats.jsonl", 30, "one two"), write(tmp_path / "others.jsonl", 5, "three green")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("CHATS", str(chats)).replace("OTHERS", str(others)))
    return path


def stages(recipe: Path, *sets: str):
    return stage_recipes(load_recipe(recipe, sets))


def run(recipe: Path, out: Path, *sets: str) -> subprocess.CompletedProcess[str]:
    words = [word for item in sets for word in ("--set", item)]
    command = [sys.executable, "-m", "luthier.cli", "run", str(recipe), "--out", str(out), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment(), check=False)


def test_what_can_be_known_of_all_stages_is_told_at_once_and_nothing_is_trained(recipe, tmp_path):
    text = recipe.read_text() + (
        "stages:\n"
        "  first: {model: {lora: {target_modules: nothing_like_this}}, train: {optimizer: paged_adamw}}\n"
        "  second: {model: {base: /nowhere/at/all}}\n"
    )
    recipe.write_text(text)
    done = run(recipe, tmp_path / "run")
    assert done.returncode == 2
    for part in ("stage first", "nothing_like_this", "q_proj", "no GPU", "stage second", "/nowhere/at/all"):
        assert part in done.stderr, part
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "run").glob("stages/*/checkpoints"))
    assert not (tmp_path / "run" / "data").exists(), "told before the data were read"


def test_numbers_that_make_no_sense_are_told_at_once(recipe, tmp_path):
    sets = ["train.learning_rate=-1", "train.optimizer=sgd", "train.schedule=step", "model.lora.dropout=1.5"]
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, sets)
    assert len(caught.value.problems) == 4
    for key in ("train.learning_rate", "train.optimizer", "train.schedule", "model.lora.dropout"):
        assert key in str(caught.value)


def test_a_base_without_a_tokenizer_or_with_a_template_without_roles_is_refused(recipe, tmp_path):
    from luthier.models.toys import write_toy

    write_toy("toy:llama", tmp_path / "whole")
    assert look_ahead(stages(recipe, f"model.base={tmp_path / 'whole'}")) == []
    bare = tmp_path / "bare"
    write_toy("toy:llama", bare)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bare / name).unlink()
    [line] = look_ahead(stages(recipe, f"model.base={bare}"))
    assert "the tokenizer of" in line
    assert "mend:" in line
    mute = tmp_path / "mute"
    write_toy("toy:llama", mute)
    for name in ("chat_template.jinja",):
        (mute / name).write_text("{{ 'nothing of what was said' }}")
    [line] = look_ahead(stages(recipe, f"model.base={mute}"))
    assert "cannot write one question" in line


def test_a_split_without_rows_is_named(recipe, tmp_path):
    from luthier.data.building.build import build
    from luthier.stages.sources import table_request

    build(table_request(stages(recipe)), tmp_path / "table")
    assert look_at_rows(stages(recipe), tmp_path / "table") == []
    sets = ("train.select=best", "data.validation_fraction=0.001", "data.train=[others]", "data.test=[chats]")
    lines = look_at_rows(stages(recipe, *sets), tmp_path / "table")
    assert len(lines) == 3
    for part in ("train.select: there is no validation row", "data.test: chats has no row", "data.train: no row"):
        assert any(part in line for line in lines), part


def test_rows_that_are_all_too_long_are_told_with_the_first_of_them(recipe, tmp_path):
    done = run(recipe, tmp_path / "run", "model.max_tokens=8")
    assert done.returncode == 2
    assert "max_tokens is 8" in done.stderr


def test_a_missing_tracker_is_told_with_the_line_that_installs_it(recipe, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    lines = look_ahead(stages(recipe, "track.trackers=[wandb,tensorboard]"))
    assert any("pip install 'luthier[wandb]'" in line for line in lines)
    assert any("pip install 'luthier[tensorboard]'" in line for line in lines)


def test_a_disk_without_room_for_two_checkpoints_is_told_before_training(recipe, tmp_path, monkeypatch):
    from luthier import verbs
    from luthier.errors import RequestError
    from luthier.runtime import disk

    monkeypatch.setattr(disk, "free_bytes", lambda path: 1000)
    with pytest.raises(RequestError, match="checkpoints"):
        verbs.run(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "stages" / "main" / "metrics.jsonl").exists()
