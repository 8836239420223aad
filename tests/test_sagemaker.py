"""A training job in a look-alike of SageMaker's folders: its channels, hyperparameters, signals and what it leaves."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from luthier import sagemaker
from luthier.data.exams import write_standin_exam
from luthier.errors import RequestError
from luthier.files import read_json, read_jsonl, sha256_file
from luthier.recipefile import load_recipe
from support.chats import WORDS
from support.children import environment

RECIPE = """
name: small-expert
model: {base: "toy:llama", max_tokens: 256, lora: {r: 4}}
data:
  sources:
    corpus: {path: corpus, format: text, sample_by: document, passage_words: 40}
    choices: {path: choices.json}
  train: [corpus]
  validation_fraction: 0
task: {kind: exam}
train: {max_steps: 100, batch_size: 4, micro_batch_size: 4, log_every: 1, save_every: 8, keep_checkpoints: 0}
evaluate: {resamples: 50, samples: 0, exams: {choices: {}}}
"""
HYPERPARAMETERS = {
    "train.max_steps": "24",
    "train.learning_rate": "3e-3",
    "name": '"job"',  # estimators of frameworks write JSON inside the text
    "sagemaker_program": "train.py",
    "_tuning_objective_metric": "loss",
}


@dataclass(frozen=True)
class Job:
    """A finished job, what it had left when it was stopped, and what it told the second time."""

    root: Path
    left: set[str]
    told: str


def tree(root: Path, recipe: str = RECIPE) -> Path:
    """What SageMaker mounts, below `root` in place of /opt/ml."""
    rng = random.Random(5)
    corpus = root / "input" / "data" / "corpus"
    for name in ("wiki/a.txt", "wiki/b.txt", "reddit.md"):
        (corpus / name).parent.mkdir(parents=True, exist_ok=True)
        (corpus / name).write_text(" ".join(f"The {rng.choice(WORDS)} is {rng.choice(WORDS)}." for _ in range(150)))
    write_standin_exam(root / "input" / "data" / "choices" / "two-way.json", "letters", 20, 1)
    (root / "input" / "data" / "recipe").mkdir()
    (root / "input" / "data" / "recipe" / "mine.yaml").write_text(recipe)
    config = root / "input" / "config"
    config.mkdir()
    (config / "hyperparameters.json").write_text(json.dumps(HYPERPARAMETERS))
    (config / "resourceconfig.json").write_text('{"current_host": "algo-1", "hosts": ["algo-1"]}')
    for name in ("model", "output/data", "checkpoints"):
        (root / name).mkdir(parents=True)
    return root


def start(root: Path, *more: str) -> subprocess.Popen[str]:
    """The container's entry point."""
    words = [sys.executable, "-m", "luthier.sagemaker", "train", *more]
    cache = str(root / ".cache")
    return subprocess.Popen(
        words, env=environment(LUTHIER_ML_ROOT=str(root), LUTHIER_CACHE=cache), text=True, stderr=subprocess.PIPE
    )


def finish(job: subprocess.Popen[str]) -> tuple[int, str]:
    _, told = job.communicate(timeout=120)
    return job.returncode, told


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Job:
    """A job that was told to stop in the middle, and begun again on a machine that has the checkpoints alone."""
    folder = tmp_path_factory.mktemp("job")
    root = tree(folder / "ml")
    process = start(root)
    metrics = root / "checkpoints" / "run" / "stages" / "main" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.is_file() and '"step": 2,' in metrics.read_text()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    stopped, told = finish(process)
    assert stopped == 130, told
    left = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    shutil.move(root / "checkpoints", folder / "kept")
    shutil.rmtree(root)
    tree(root)
    (root / "checkpoints").rmdir()
    shutil.move(folder / "kept", root / "checkpoints")
    code, told = finish(start(root))
    assert code == 0, told
    return Job(root, left, told)


def test_a_stopped_job_leaves_a_checkpoint_and_neither_model_nor_failure(job):
    assert any(name.startswith("checkpoints/run/stages/main/checkpoints/step-") for name in job.left)
    assert not [name for name in job.left if name.startswith(("model", "output"))]


def test_a_job_that_is_begun_again_goes_on_with_the_step_where_it_was(job):
    lines = read_jsonl(job.root / "checkpoints" / "run" / "stages" / "main" / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 25))
    assert not (job.root / "output" / "failure").exists()


def test_channels_and_hyperparameters_are_what_the_run_is_made_of(job):
    run = job.root / "checkpoints" / "run"
    recipe = load_recipe(run / "recipe.yaml")
    data = job.root / "input" / "data"
    assert recipe.data.sources["corpus"].path == str(data / "corpus")
    assert recipe.data.sources["choices"].path == str(data / "choices" / "two-way.json")
    assert (recipe.train.max_steps, recipe.train.learning_rate, recipe.name) == (24, 3e-3, "job")
    assert read_json(run / "data" / "manifest.json")["sources"]["corpus"]["records"] == 3


def test_the_model_folder_has_what_others_need_and_no_more(job):
    model = job.root / "model"
    there = {path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()}
    assert {"report.html", "recipe.yaml", "run.json", "stages/main/scores.json"} <= there
    adapter = "stages/main/adapter/adapter_model.safetensors"
    assert sha256_file(model / adapter) == sha256_file(job.root / "checkpoints" / "run" / adapter)
    assert "stages/main/exams/choices/table.json" in there
    table = read_json(model / "stages/main/exams/choices/table.json")
    assert {"base", "step-000008", "step-000016", "step-000024"} <= {one["name"] for one in table["candidates"]}
    assert not [name for name in there if "checkpoints" in name or name.startswith(("data", "tokens", "."))]


def test_a_job_without_a_place_for_checkpoints_leaves_its_run_where_results_are_kept(tmp_path):
    container = sagemaker.Container.of({"LUTHIER_ML_ROOT": str(tree(tmp_path))})
    assert container.run == tmp_path / "checkpoints" / "run"
    (tmp_path / "checkpoints").rmdir()
    assert container.run == tmp_path / "output" / "data" / "run"


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"train.learning_rat": "1"}, 2, "did you mean learning_rate"),
        ({"model.base": "toy:viola"}, 2, "no such toy"),
        ({"data.sources.corpus.path": "/nowhere"}, 2, "/nowhere is not there"),
    ],
)
def test_a_broken_request_is_told_in_the_failure_file(tmp_path, monkeypatch, change, code, said):
    root = tree(tmp_path)
    (root / "input" / "config" / "hyperparameters.json").write_text(json.dumps(HYPERPARAMETERS | change))
    assert called(root, monkeypatch) == code
    assert said in (root / "output" / "failure").read_text()
    assert not any((root / "model").iterdir())


def test_work_that_fails_is_told_in_the_failure_file(tmp_path, monkeypatch):
    def fail(*_args, **_more):
        raise ValueError("the disk is made of wood")

    monkeypatch.setattr(sagemaker.verbs, "run", fail)
    with pytest.raises(ValueError, match="wood"):
        called(tree(tmp_path), monkeypatch)
    assert (tmp_path / "output" / "failure").read_text() == "ValueError: the disk is made of wood"


def test_several_machines_are_refused(tmp_path, monkeypatch):
    root = tree(tmp_path)
    (root / "input" / "config" / "resourceconfig.json").write_text('{"hosts": ["algo-1", "algo-2"]}')
    assert called(root, monkeypatch) == 2
    assert "2 machines" in (root / "output" / "failure").read_text()


def called(root: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of the entry point, in this process."""
    monkeypatch.setenv("LUTHIER_ML_ROOT", str(root))
    before = signal.getsignal(signal.SIGTERM)
    try:
        return sagemaker.main(["train"])
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.fixture
def asked(tmp_path, monkeypatch) -> list[str]:
    """The overrides that a run is asked for, where nothing is run."""
    found: list[str] = []

    def run(recipe: Path, out: Path, overrides: list[str], *, resume: bool) -> None:
        found.extend(overrides)
        out.mkdir(parents=True)
        load_recipe(recipe, overrides)

    monkeypatch.setattr(sagemaker.verbs, "run", run)
    return found


def test_a_channel_of_one_file_is_that_file_and_a_variable_says_where_a_channel_is(tmp_path, monkeypatch, asked):
    root = tree(tmp_path / "ml", RECIPE.replace("choices:", "exam-one:"))
    (tmp_path / "exam").mkdir()
    for name in ("questions.json", "README.md", ".hidden.json", "picture.png"):
        (tmp_path / "exam" / name).write_text("[]")
    monkeypatch.setenv("SM_CHANNEL_EXAM-ONE", str(tmp_path / "exam"))
    assert called(root, monkeypatch) == 0
    assert f"data.sources.exam-one.path={tmp_path / 'exam' / 'questions.json'}" in asked
    assert f"data.sources.corpus.path={root / 'input' / 'data' / 'corpus'}" in asked


def test_what_is_set_by_hand_wins_and_what_the_service_adds_is_passed_over(tmp_path, monkeypatch, asked):
    root = tree(tmp_path)
    monkeypatch.setenv("LUTHIER_ML_ROOT", str(root))
    before = signal.getsignal(signal.SIGTERM)
    path = root / "input" / "data" / "recipe" / "mine.yaml"
    assert sagemaker.main([str(path), "--set", "train.max_steps=7", "--set", "data.sources.corpus.path=mine"]) == 0
    signal.signal(signal.SIGTERM, before)
    recipe = load_recipe(path, asked)
    assert (recipe.train.max_steps, recipe.data.sources["corpus"].path) == (7, "mine")
    assert not [one for one in asked if "sagemaker" in one or "tuning" in one]


def test_a_channel_that_no_source_is_named_after_is_told(tmp_path, monkeypatch, asked, capsys):
    root = tree(tmp_path)
    (root / "input" / "data" / "corpuss").mkdir()
    assert called(root, monkeypatch) == 0
    assert "channel corpuss: the recipe has no source of this name (it has corpus, choices)" in capsys.readouterr().err


def test_a_job_without_a_recipe_runs_the_shipped_expert(tmp_path):
    root = tree(tmp_path)
    shutil.rmtree(root / "input" / "data" / "recipe")
    path = sagemaker._recipe(sagemaker.Container.of({"LUTHIER_ML_ROOT": str(root)}))
    assert path.read_bytes() == (Path(__file__).parents[1] / "recipes" / "expert.yaml").read_bytes()


def test_hyperparameters_are_read_from_the_variable_where_there_is_no_file(tmp_path):
    given = {"train.max_steps": 3, "train.packing": False, "name": "a", "sagemaker_region": "eu-west-1"}
    container = sagemaker.Container.of({"LUTHIER_ML_ROOT": str(tmp_path), "SM_HPS": json.dumps(given)})
    assert container.hyperparameters() == ["train.max_steps=3", "train.packing=false", "name=a"]


def test_two_recipes_in_the_channel_are_refused(tmp_path):
    root = tree(tmp_path)
    (root / "input" / "data" / "recipe" / "other.yaml").write_text(RECIPE)
    with pytest.raises(RequestError, match="2 recipes"):
        sagemaker._recipe(sagemaker.Container.of({**os.environ, "LUTHIER_ML_ROOT": str(root)}))
