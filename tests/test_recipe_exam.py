"""The exam part of a recipe: what is refused, and with which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.errors import RecipeError
from luthier.recipefile import load_recipe, stage_recipes

GOOD = """
name: expert
model: {base: "toy:llama"}
data:
  sources: {corpus: {path: corpus.jsonl}, dev: {path: dev.json}, report: {path: report.json}, solved: {path: s.json}}
  train: [corpus]
  validation_fraction: 0
task: {kind: exam}
train: {select: exam, keep_checkpoints: 0}
evaluate:
  choose_by: dev
  exams: {dev: {}, report: {shots: 2, pool: solved}}
"""


def write(folder: Path, text: str = GOOD) -> Path:
    (folder / "recipe.yaml").write_text(text)
    return folder / "recipe.yaml"


def test_exams_are_read_with_their_defaults_and_their_sources_may_be_named_by_set(tmp_path):
    found = load_recipe(write(tmp_path), ["data.sources.dev.path=other.json", "evaluate.exams.dev.method=text"])
    assert found.data.sources["dev"].path == "other.json"
    assert found.evaluate.exams["dev"].method == "text"
    assert found.evaluate.exams["report"].prompts == ["question"]
    assert stage_recipes(found)["main"].evaluate.exams == found.evaluate.exams


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("evaluate.exams.dev.method=guess", "evaluate.exams.dev.method: 'guess' is not one of letters, text, generate"),
        ("evaluate.exams.dev.prompts=[poem]", "evaluate.exams.dev.prompts: one or more of question, instruction, exam"),
        ("evaluate.exams.dev.normalization=bytes", "evaluate.exams.dev.normalization: goes with method: text"),
        ("evaluate.exams.dev.shots=3", "evaluate.exams.dev.shots: go with a pool"),
        ("evaluate.exams.report.pool=nowhere", "evaluate.exams.report.pool: 'nowhere' is not in data.sources"),
        ("evaluate.exams.more.method=text", "evaluate.exams.more: 'more' is not in data.sources"),
        ("evaluate.exams.dev.metod=text", "evaluate.exams.dev.metod: unknown key (did you mean method?)"),
        ("data.train=[corpus, dev]", "evaluate.exams.dev: is a source of rows too"),
        ("evaluate.choose_by=exam", "evaluate.choose_by: 'exam' is not one of dev, report"),
        ("evaluate.choose_by=", "evaluate.choose_by: train.select: exam needs it (one of dev, report)"),
        ("evaluate.examine=sometimes", "evaluate.examine: 'sometimes' is not during or after"),
        ("evaluate.examine_every=0", "evaluate.examine_every: must be at least 1"),
        ("train.keep_checkpoints=2", "train.keep_checkpoints: 0 (all), or there is nothing left to examine"),
        ("train.early_stopping_patience=2", "evaluate.examine: early stopping by an exam needs during"),
        ("task.kind=verdict", "evaluate.exams: means nothing for task.kind: verdict"),
    ],
)
def test_what_does_not_go_together_is_named(tmp_path, override, expected):
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path), [override])
    assert any(line.startswith(expected) for line in caught.value.problems), caught.value.problems


def test_an_exam_task_without_an_exam_is_refused(tmp_path):
    text = GOOD.replace("  exams: {dev: {}, report: {shots: 2, pool: solved}}\n", "").replace("  choose_by: dev\n", "")
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, text.replace("evaluate:\n", "")))
    assert any(line.startswith("evaluate.exams: task.kind: exam needs one") for line in caught.value.problems)
