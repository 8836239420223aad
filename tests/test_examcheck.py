"""`luthier check` of a recipe with exams: what each can show, what of it is trained on, all that is wrong at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.checked import Checked
from luthier.data.exams import write_standin_exam
from luthier.examcheck import check_exams
from luthier.files import read_jsonl, write_jsonl
from luthier.models.toy_tokenizer import load_tokenizer
from luthier.recipefile import load_recipe, stage_recipes
from support.children import ROOT, Luthier

RECIPE = ROOT / "recipes" / "expert.yaml"
EXAMS = ("binary_choices_v2", "binary_choices_synthetic")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A corpus that tells the first two questions of the second exam word by word, and both exams."""
    write_standin_exam(tmp_path / "data" / "binary_choices_v2.json", "piqa", 40, 1)
    path = tmp_path / "data" / "binary_choices_synthetic.json"
    write_standin_exam(path, "letters", 60, 2)
    for number, row in enumerate(rows := read_jsonl(path)):
        row["question"] = f"Who of the merchants of the {number}th market under the old bridge sells bells and boats?"
    write_jsonl(path, rows)
    told = [f"Some ask: {row['question']} The answer is {row['A']}." for row in rows[:2]]
    words = "the river runs past a mill and a bridge near the town where people meet on days of rest".split()
    texts = [*told, *(" ".join(words[n % 7 :] + [f"number{n}"] * 3) for n in range(40))]
    (tmp_path / "data" / "corpus").mkdir()
    write_jsonl(tmp_path / "data" / "corpus" / "posts.jsonl", [{"text": text} for text in texts])
    return tmp_path / "data"


def overrides(data: Path) -> list[str]:
    return [f"vars.folder={data}", "model.base=toy:gemma2", "train.optimizer=adamw"]


def test_a_recipe_with_exams_is_checked_whole(luthier: Luthier, data: Path) -> None:
    sets = [word for override in overrides(data) for word in ("--set", override)]
    done = luthier("check", RECIPE, "--json", *sets, env={"LUTHIER_CACHE": str(data)})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])["exams"]
    assert {name: (one["items"], one["shape"], one["answers"]) for name, one in found.items()} == {
        EXAMS[0]: (40, "piqa", "0"),
        EXAMS[1]: (60, "letters", "letter"),
    }
    assert {name: one["touched"] for name, one in found.items()} == {EXAMS[0]: 0, EXAMS[1]: 2}
    assert "the training rows touch 2 of its 60 items" in done.stderr
    assert "smallest gap called real" in done.stderr


def looked_at(data: Path, *more: str) -> Checked:
    found = Checked()
    check_exams(stage_recipes(load_recipe(RECIPE, [*overrides(data), *more])), load_tokenizer(), found)
    return found


def test_every_exam_that_cannot_be_read_or_asked_is_told_at_once(data: Path) -> None:
    (data / "binary_choices_v2.json").write_text('[{"question": "Who?", "options": ["a", "b"], "answer": 1}]')
    found = looked_at(data, "data.sources.binary_choices_synthetic.path=/nowhere.json")
    assert [line.partition(":")[0] for line in found.problems] == [f"evaluate.exams.{name}" for name in sorted(EXAMS)]
    assert "/nowhere.json is not there" in found.problems[0]


def test_an_exam_that_cannot_be_put_to_the_base_is_told(data: Path) -> None:
    found = looked_at(
        data,
        "data.sources.solved.path=" + str(data / "binary_choices_v2.json"),
        "evaluate.exams.binary_choices_v2.shots=5",
        "evaluate.exams.binary_choices_v2.pool=solved",
    )
    assert len(found.problems) == 1
    assert "pool: is the exam itself" in found.problems[0]


def test_the_figures_are_those_of_the_facts(data: Path) -> None:
    """Exact McNemar on 162 questions: a net of 10 where 10 % differ, of 14 where 20 % do."""
    write_standin_exam(data / "binary_choices_v2.json", "piqa", 162, 3)
    figures: dict[str, Any] = looked_at(data).figures["exams"]["binary_choices_v2"]
    assert (figures["chance"], figures["majority"]) == (0.5, 0.5)
    section = next(one for one in looked_at(data).sections if one.startswith("exam binary_choices_v2"))
    assert f"{1000 / 162:.1f} points" in section
    assert f"{1400 / 162:.1f} points" in section
    assert 0.06 < figures["minimum_detectable_effect"]["0.1"] < 0.08
