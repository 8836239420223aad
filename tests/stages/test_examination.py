"""A stage that is judged by exams: its folder, during and after, resumed, from an earlier stage, and fully tuned."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from luthier import verbs
from luthier.errors import CheckpointError, Interrupted, RecipeError, RequestError
from luthier.files import read_json, read_jsonl, sha256_file

RECIPE = """
name: small-exam
model: {base: "toy:llama", max_tokens: 256, lora: {r: 4, dropout: 0.1}}
data:
  sources: {corpus: {path: FOLDER/corpus.jsonl}, dev: {path: FOLDER/dev.json}, report: {path: FOLDER/report.json}}
  train: [corpus]
  test: []
  validation_fraction: 0
task: {kind: exam}
train: {select: exam, keep_checkpoints: 0, max_steps: 10, batch_size: 8, micro_batch_size: 4, learning_rate: 3.0e-3,
  log_every: 5, save_every: 4}
evaluate: {resamples: 200, choose_by: dev, exams: {dev: {}, report: {method: text, prompts: [question, exam]}}}
"""
CANDIDATES = ["base", "step-000004", "step-000008", "step-000010"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exam-recipe")
    rng = random.Random(1)
    colours = ("green", "blue", "red")
    texts = [{"text": f"The grade of answer {i} is {rng.choice(colours)} and long."} for i in range(40)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    for name, count in (("dev", 30), ("report", 36)):
        items = [
            {"goal": f"Item {i} of {name}: which colour?", "sol1": "green", "sol2": "blue", "label": rng.randint(0, 1)}
            for i in range(count)
        ]
        (folder / f"{name}.json").write_text(json.dumps(items))
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.replace("FOLDER", str(folder)))
    return path


@pytest.fixture(autouse=True)
def _no_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def after(recipe, tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTHIER_CACHE", str(tmp_path_factory.mktemp("cache")))
        verbs.run(recipe, tmp_path_factory.mktemp("after") / "run")
    return tmp_path_factory.getbasetemp() / "after0" / "run"


def answers(run: Path, exam: str, stage: str = "main") -> dict[str, str]:
    """Candidate -> digest of its answers."""
    place = run / "stages" / stage / "exams" / exam
    return {path.parent.name: sha256_file(path) for path in place.glob("*/predictions.jsonl")}


def test_the_base_and_every_checkpoint_sat_both_exams_and_the_kept_one_is_the_adapter(after):
    stage = after / "stages" / "main"
    assert sorted(answers(after, "dev")) == sorted(answers(after, "report")) == CANDIDATES
    table = read_json(stage / "exams" / "dev" / "table.json")
    assert [one["name"] for one in table["candidates"]] == CANDIDATES
    kept = table["chosen"]
    assert read_json(stage / "stage.json")["trained"]["kept_step"] == int(kept.removeprefix("step-"))
    weights = "adapter_model.safetensors"
    assert sha256_file(stage / "adapter" / weights) == sha256_file(stage / "checkpoints" / kept / weights)
    assert read_json(stage / "exams" / "report" / "table.json")["chosen"] is None


def test_predictions_and_scores_of_the_stage_are_those_of_the_kept_checkpoint_on_the_exam_that_did_not_choose(after):
    stage = after / "stages" / "main"
    scores, kept = read_json(stage / "scores.json"), read_json(stage / "exams" / "dev" / "table.json")["chosen"]
    assert scores["exam"] == "report"
    assert scores["accuracy"] == read_json(stage / "exams" / "report" / kept / "scores.json")["accuracy"]
    assert scores["majority"]["n"] == 36
    rows = read_jsonl(stage / "predictions.jsonl")
    assert [row["exam"] for row in rows] == ["report"] * 36 + ["dev"] * 30
    assert {"id", "answer", "choice", "logprobs", "correct"} <= set(rows[0])
    right = sum(row["correct"] for row in rows[:36]) / 36
    assert scores["accuracy"]["value"] == pytest.approx(right)
    assert (stage / "held-out.jsonl").is_file()


def test_during_training_gives_the_same_answers_and_the_same_weights_as_after(recipe, after, tmp_path):
    verbs.run(recipe, tmp_path / "run", ["evaluate.examine=during"])
    for exam in ("dev", "report"):
        assert answers(tmp_path / "run", exam) == answers(after, exam)
    weights = "stages/main/checkpoints/step-000010/adapter_model.safetensors"
    assert sha256_file(tmp_path / "run" / weights) == sha256_file(after / weights)


def test_an_examination_that_was_cut_goes_on_where_it_was(recipe, after, tmp_path, monkeypatch):
    from luthier.evaluate.sweep import Sitter

    sit, sat = Sitter.sit, []

    def cut(self, candidate, examiner, place):
        if len(sat) == 5:
            raise KeyboardInterrupt
        sat.append(candidate.name)
        sit(self, candidate, examiner, place)

    monkeypatch.setattr(Sitter, "sit", cut)
    with pytest.raises(Interrupted):
        verbs.run(recipe, tmp_path / "run")
    monkeypatch.setattr(Sitter, "sit", sit)
    verbs.run(recipe, tmp_path / "run", resume=True)
    for exam in ("dev", "report"):
        assert answers(tmp_path / "run", exam) == answers(after, exam)
    for name in ("predictions.jsonl", "adapter/adapter_model.safetensors"):
        assert sha256_file(tmp_path / "run/stages/main" / name) == sha256_file(after / "stages/main" / name)


def test_early_stopping_by_an_exam_counts_examined_checkpoints(recipe, tmp_path, monkeypatch):
    from luthier.stages.examination import StageExams

    losses = {4: 0.5, 8: 0.7}
    monkeypatch.setattr(StageExams, "_looks", lambda self, step: [losses[s] for s in range(4, step + 1, 4)])
    verbs.run(recipe, tmp_path / "run", ["evaluate.examine=during", "train.early_stopping_patience=1"])
    assert sorted(answers(tmp_path / "run", "dev")) == CANDIDATES[:3]
    assert read_json(tmp_path / "run/stages/main/stage.json")["trained"]["stopped_early"] is True


def test_a_fully_tuned_stage_is_examined_from_its_base_on(recipe, tmp_path):
    verbs.run(recipe, tmp_path / "run", ["model.tuning=full", "train.learning_rate=1e-3"])
    place = tmp_path / "run/stages/main/exams/dev"
    assert sorted(answers(tmp_path / "run", "dev")) == CANDIDATES
    assert read_json(place / "base/candidate.json")["adapter_sha256"] == ""
    table = read_json(place / "table.json")
    assert table["candidates"][0]["against_base"] is None
    assert all(one["against_base"] for one in table["candidates"][1:])


def test_the_base_answers_alike_under_lora_and_in_front_of_full_tuning(recipe, after, tmp_path):
    verbs.run(recipe, tmp_path / "run", ["model.tuning=full", "train.max_steps=4"])
    assert answers(tmp_path / "run", "dev")["base"] == answers(after, "dev")["base"]


def test_a_stage_that_starts_from_another_has_that_ones_end_as_a_candidate(recipe, tmp_path):
    text = recipe.read_text() + "stages: {one: {}, two: {start_from: one, train: {max_steps: 4}}}\n"
    (tmp_path / "two.yaml").write_text(text)
    verbs.run(tmp_path / "two.yaml", tmp_path / "run")
    second = answers(tmp_path / "run", "dev", "two")
    assert sorted(second) == ["base", "start", "step-000004"]
    first = answers(tmp_path / "run", "dev", "one")
    kept = read_json(tmp_path / "run/stages/one/exams/dev/table.json")["chosen"]
    assert second["start"] == first[kept]
    assert second["base"] == first["base"]


def test_an_exam_that_cannot_be_read_is_told_before_anything_is_made(recipe, tmp_path):
    (tmp_path / "bad.json").write_text(json.dumps([{"question": "Which?", "options": ["a", "b"], "answer": 1}] * 3))
    with pytest.raises(RecipeError) as caught:
        verbs.run(recipe, tmp_path / "run", [f"data.sources.dev.path={tmp_path / 'bad.json'}"])
    assert "bad.json" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_broken_checkpoint_is_not_examined(recipe, tmp_path, monkeypatch):
    from luthier.stages.examination import StageExams

    settle = StageExams.settle

    def harm(self, learner, checkpoints, usual):
        path = checkpoints.path(8) / "adapter_model.safetensors"
        raw = bytearray(path.read_bytes())
        raw[-1] ^= 1
        path.write_bytes(bytes(raw))
        return settle(self, learner, checkpoints, usual)

    monkeypatch.setattr(StageExams, "settle", harm)
    with pytest.raises(CheckpointError, match="step-000008"):
        verbs.run(recipe, tmp_path / "run")


def test_the_best_by_validation_is_examined_though_no_exam_was_due_there(recipe, tmp_path, monkeypatch):
    from luthier.stages import fit

    make_job, losses = fit.make_job, iter([1.0, 2.0, 3.0, 4.0])
    monkeypatch.setattr(fit, "make_job", lambda *given: replace(make_job(*given), validate=lambda: next(losses)))
    change = ["train.select=best", "data.validation_fraction=0.2", "train.validate_every=3", "evaluate.choose_by="]
    verbs.run(recipe, tmp_path / "run", change)
    stage = tmp_path / "run/stages/main"
    assert read_json(stage / "stage.json")["trained"]["kept_step"] == 3
    assert sorted(answers(tmp_path / "run", "dev")) == sorted([*CANDIDATES, "step-000003"])
    own = read_json(stage / "exams/dev/step-000003/scores.json")
    assert read_json(stage / "scores.json")["accuracy"] == own["accuracy"]


@pytest.mark.parametrize("examine", ["during", "after"])
def test_answers_of_steps_that_are_trained_again_are_forgotten(recipe, after, tmp_path, examine, monkeypatch):
    """Steps 8 and 10 broke, and another machine's rounding gives them other weights."""
    run = tmp_path / "run"
    verbs.run(recipe, run, [f"evaluate.examine={examine}"])
    stage = run / "stages/main"
    for name in ("stage.json", "predictions.jsonl", "scores.json"):
        (stage / name).unlink()
    shutil.rmtree(stage / "adapter")
    for name in CANDIDATES[2:]:
        (stage / "checkpoints" / name / "adapter_model.safetensors").write_bytes(b"")
        for exam in ("dev", "report"):  # as if the weights had been others
            seat = stage / "exams" / exam / name
            (seat / "candidate.json").write_text(
                json.dumps({**read_json(seat / "candidate.json"), "key": "other", "adapter_sha256": "other"})
            )
            lines = [
                {**row, "choice": 0, "correct": row["answer"] == 0} for row in read_jsonl(seat / "predictions.jsonl")
            ]
            (seat / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    verbs.run(recipe, run, [f"evaluate.examine={examine}"], resume=True)
    for exam in ("dev", "report"):
        assert answers(run, exam) == answers(after, exam)


def test_a_sitting_without_scores_is_not_over_and_its_look_is_counted(recipe, after, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(after, run)
    seat = run / "stages/main/exams/dev/step-000008"
    wanted = read_json(seat / "scores.json")
    for path in (seat / "scores.json", run / "stages/main/stage.json"):
        path.unlink()
    shutil.rmtree(run / "stages/main/adapter")
    digest = read_json(run / "stages/main/exams/dev/exam.json")["digest"]
    ledger = tmp_path / "looks"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTHIER_HOME", str(tmp_path))
        verbs.run(recipe, run, resume=True)
    key = read_json(seat / "candidate.json")["key"]
    assert key in {row["who"] for row in read_jsonl(ledger / f"{digest}.jsonl")}
    assert read_json(seat / "scores.json") == wanted


def test_early_stopping_passes_over_a_step_that_the_disk_refused(recipe, tmp_path, monkeypatch):
    from luthier.errors import DiskError
    from luthier.runtime.checkpoints import Checkpoints

    write = Checkpoints._write

    def refuse(self, step, *rest):
        if step == 4:
            raise DiskError("no room")
        write(self, step, *rest)

    monkeypatch.setattr(Checkpoints, "_write", refuse)
    verbs.run(recipe, tmp_path / "run", ["evaluate.examine=during", "train.early_stopping_patience=1"])
    assert sorted(answers(tmp_path / "run", "dev")) == ["base", "step-000008", "step-000010"]


def test_an_exam_that_chooses_and_reports_under_two_names_is_refused(recipe, tmp_path):
    twin = f"data.sources.report.path={recipe.parent / 'dev.json'}"
    with pytest.raises(RequestError, match="dev has the questions of report"):
        verbs.run(recipe, tmp_path / "run", [twin])


def test_another_version_of_an_exam_is_not_mixed_into_a_run(recipe, after, tmp_path):
    shutil.copytree(after, tmp_path / "run")
    shutil.copytree(recipe.parent, tmp_path / "files")
    shutil.rmtree(tmp_path / "run/stages/main/exams/dev/step-000010")
    (tmp_path / "run/stages/main/stage.json").unlink()
    items = json.loads((recipe.parent / "dev.json").read_text())
    original = (recipe.parent / "dev.json").read_text()
    items[0]["goal"] += " Really?"
    (recipe.parent / "dev.json").write_text(json.dumps(items))
    try:
        with pytest.raises(RequestError, match="digest"):
            verbs.run(recipe, tmp_path / "run", resume=True)
    finally:
        (recipe.parent / "dev.json").write_text(original)


def test_checkpoints_of_a_base_that_hears_sit_an_exam_of_recordings(recipe, tmp_path):
    lines = []
    for n in range(6):
        tone = 0.3 * np.sin(2 * np.pi * (150 + 90 * n) * np.arange(8000 + 1500 * n) / 16_000)
        soundfile.write(tmp_path / f"{n}.wav", tone, 16_000)
        lines.append({"question": "High?", "audio": f"{n}.wav", "options": ["yes", "no"], "answer": "AB"[n % 2]})
    (tmp_path / "sounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    change = [
        f"data.sources.dev.path={tmp_path / 'sounds.jsonl'}",
        "model.base=toy:phi4-multimodal",
        "train.max_steps=4",
        "evaluate.exams.dev.chat_template=true",
    ]
    verbs.run(recipe, tmp_path / "run", change)
    assert sorted(answers(tmp_path / "run", "dev")) == CANDIDATES[:2]
    first, second = (
        [row["logprobs"] for row in read_jsonl(tmp_path / f"run/stages/main/exams/dev/{name}/predictions.jsonl")]
        for name in CANDIDATES[:2]
    )
    assert first != second
    assert len({tuple(pair) for pair in first}) == 6
