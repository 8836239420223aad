"""Held-out pictures: with what they are asked about, what is true of them, and how answers become predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from luthier.data.table import iter_rows
from luthier.errors import DataError, LuthierError
from luthier.evaluate.generate import Answer, Decoding
from luthier.evaluate.seeing import Prompt
from luthier.files import read_jsonl, write_jsonl
from luthier.models.lessons import Lesson, Lessons
from luthier.models.senses.supply import Medium
from luthier.recipe import Recipe
from luthier.recipefile import load_recipe
from luthier.rundir import RunDir, StageDir
from luthier.stages import describe_judge
from luthier.stages.chat_prepare import PreparedChat
from luthier.stages.describe_judge import Describing
from support.fakedescribe import describe_run

ASKED, ANSWER, EXTRA = 5, 8, 2
"""Ids of a made-up lesson: the question with its picture, the answer, what the template writes after it."""


class Says:
    """In place of the Generator: says what it was made to say, and keeps what it was asked."""

    prompts: Sequence[Prompt] = ()
    decoding: Decoding
    batch: int
    texts: Sequence[str] = ()

    def __init__(self, *parts: Any) -> None:
        Says.batch = parts[3]

    def __call__(self, prompts: Sequence[Prompt], decoding: Decoding, label: str = "") -> list[Answer]:
        Says.prompts, Says.decoding = prompts, decoding
        return [Answer([1], text, True) for text in Says.texts[: len(prompts)]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.setattr(describe_judge, "Generator", Says)
    monkeypatch.setattr(describe_judge.ChatTemplate, "of", lambda tokenizer: tokenizer)
    return RunDir(describe_run(tmp_path / "run", rows=60))


@pytest.fixture
def recipe(run: RunDir) -> Recipe:
    return load_recipe(run.path / "given.yaml")


def ready(run: RunDir, micro_tokens: int = 1000) -> PreparedChat:
    """What a stage prepares, with lessons of made-up ids: the rows' own are another module's affair."""
    lessons: dict[str, Lessons] = {}
    for split in ("train", "validation"):
        rows = [(number, item.row) for number, item in enumerate(iter_rows(run.data)) if item.row.split == split]
        made = [
            Lesson(
                row.id,
                np.arange(ASKED + ANSWER + EXTRA, dtype=np.int32) + number,
                np.array([0] * ASKED + [1] * ANSWER + [0] * EXTRA, dtype=np.float32),
                (Medium("image", row.media[0], 2),),
            )
            for number, row in rows
        ]
        lessons[split] = replace(Lessons.of(made), numbers=np.array([number for number, _ in rows]))
    found = SimpleNamespace(
        lessons=lessons["train"],
        held_out=lessons["validation"],
        base=SimpleNamespace(tokenizer=None),
        model=SimpleNamespace(language_model=None),
        devices=None,
        layout=SimpleNamespace(micro_rows=32, micro_tokens=micro_tokens),
        supply=None,
    )
    return cast("PreparedChat", found)


def truths(run: RunDir) -> list[str]:
    return [item.row.messages[-1].text for item in iter_rows(run.data, {"split": "validation"})]


def test_a_picture_is_asked_about_with_the_ids_with_which_its_lesson_begins(run: RunDir, recipe: Recipe) -> None:
    describing = Describing.of(ready(run), run, recipe)
    assert describing is not None
    Says.texts = truths(run)
    lines, _ = describing.judge(StageDir(run.path / "stages/other"))
    held_out = [(n, item.row) for n, item in enumerate(iter_rows(run.data)) if item.row.split == "validation"]
    assert [list(prompt.ids) for prompt in Says.prompts] == [list(range(n, n + ASKED)) for n, _ in held_out]
    assert [prompt.media[0].reference for prompt in Says.prompts] == [row.media[0] for _, row in held_out]
    assert [line["id"] for line in lines] == [row.id for _, row in held_out]
    assert [line["group"] for line in lines] == [row.group for _, row in held_out]
    assert ANSWER < Says.decoding.max_new_tokens <= 1.25 * ANSWER + 1
    assert Says.decoding.temperature == 0


def test_answers_that_are_true_have_the_best_scores_and_others_count_as_wrong(run: RunDir, recipe: Recipe) -> None:
    describing = Describing.of(ready(run), run, recipe)
    assert describing is not None
    said = truths(run)
    Says.texts = [*said[:-2], "no idea", ""]
    lines, scores = describing.judge(StageDir(run.path / "stages/other"))
    n = len(said)
    assert [line["read"] is None for line in lines] == [False] * (n - 2) + [True, True]
    for name in ("category.accuracy", "price.within_10", "title.token_f1"):
        assert scores[name]["value"] == pytest.approx((n - 2) / n)
        assert scores[name]["n"] == n
    assert scores["unparseable"]["value"] == pytest.approx(2 / n)
    assert scores["price.median_log_error"]["value"] == 0
    assert "before.unparseable" not in scores


def test_many_pictures_go_through_in_passes_of_as_many_tokens_as_are_scored_at_once(
    run: RunDir, recipe: Recipe
) -> None:
    describing = Describing.of(ready(run, micro_tokens=50), run, recipe)
    assert describing is not None
    Says.texts = truths(run)
    describing.judge(StageDir(run.path / "stages/other"))
    assert Says.batch == 50 // (ASKED + describing.longest)
    describing = Describing.of(ready(run, micro_tokens=1), run, recipe)
    assert describing is not None
    describing.judge(StageDir(run.path / "stages/other"))
    assert Says.batch == 1


def test_the_recipe_says_how_many_and_whether_before(run: RunDir, recipe: Recipe) -> None:
    evaluate = replace(recipe.evaluate, describe_rows=3, describe_before=True)
    describing = Describing.of(ready(run), run, replace(recipe, evaluate=evaluate))
    assert describing is not None
    assert len(describing.questions) == 3
    stage = StageDir(run.path / "stages/other")
    stage.path.mkdir()
    Says.texts = ["what?"] * 3
    describing.before(stage)
    assert [line["answer"] for line in read_jsonl(stage.described_before)] == ["what?"] * 3
    Says.texts = ["other"] * 3
    describing.before(stage)
    assert {line["answer"] for line in read_jsonl(stage.described_before)} == {"what?"}, "a resumed run asks no more"
    Says.texts = truths(run)
    lines, scores = describing.judge(stage)
    assert [line["before"]["answer"] for line in lines] == ["what?"] * 3
    assert scores["before.unparseable"]["value"] == 1
    assert scores["unparseable"]["value"] == 0
    write_jsonl(stage.described_before, [{"id": "other", "answer": "a", "stopped": True}])
    with pytest.raises(LuthierError, match="not those that are held out now"):
        describing.judge(stage)


def test_a_stage_without_descriptions_to_learn_from_is_refused_before_it_is_trained(
    run: RunDir, recipe: Recipe
) -> None:
    other = replace(recipe, data=replace(recipe.data, train=["other"]))
    with pytest.raises(DataError, match="no training row"):
        Describing.of(ready(run), run, other)


def test_nothing_held_out_is_said_and_is_no_error(
    run: RunDir, recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = ready(run)
    nothing.held_out = None
    assert Describing.of(nothing, run, recipe) is None
    assert "no held-out row is a description" in capsys.readouterr().err
