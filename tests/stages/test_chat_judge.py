"""Held-out scores of chats: what weights do to them, and rows that are not those of before."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from luthier.errors import LuthierError
from luthier.evaluate.answers import answer_losses
from luthier.files import write_jsonl
from luthier.models.lessons import Lesson, Lessons
from luthier.rundir import StageDir
from luthier.runtime.devices import Devices
from luthier.stages import chat_judge
from luthier.stages.chat_judge import HeldOut, scores
from support import chats


@pytest.fixture(scope="module")
def held():
    made = chats.recipe()
    base, model = chats.model_of(made)
    lessons = chats.encode(base, chats.chats(12))
    return made, base, model, lessons


def scored(held, factor: float) -> dict:
    made, base, model, lessons = held
    weighed = [
        Lesson(one.id, one.ids_L, one.weight_L * np.float32(factor)) for one in map(lessons.__getitem__, range(12))
    ]
    found = Lessons.of(weighed)
    losses = answer_losses(model, found, chats.layout_of(made, base), Devices("float32"))
    made.evaluate.resamples = 30
    ids = found.names
    items = HeldOut(
        ids, ["a"] * 12, ids, chat_judge.weighed_bytes(found, base.tokenizer), np.ones(12, np.int64), losses, losses
    )
    return scores(items, made)


def test_a_weight_that_all_share_changes_no_score(held):
    plain, quarter = scored(held, 1.0), scored(held, 0.25)
    for key in ("loss", "bits_per_byte", "perplexity"):
        assert quarter[key]["value"] == pytest.approx(plain[key]["value"], rel=1e-5)
    assert plain["gain.loss"]["value"] == 0.0


def test_bytes_are_those_of_the_answers_text(held):
    _, base, _, lessons = held
    whole = chat_judge.weighed_bytes(lessons, base.tokenizer)
    for number, item in enumerate(chats.chats(12)):
        answers = [message.text for message in item.row.messages if message.role == "assistant"]
        assert whole[number] == sum(len(text.encode()) for text in answers)


def test_rows_that_are_not_those_of_before_are_refused_by_name(held, tmp_path):
    made, base, model, lessons = held
    stage = StageDir(tmp_path)
    write_jsonl(stage.before, [{"id": f"other-{i}", "nll": 1.0, "weight": 1.0} for i in range(12)])
    ready = SimpleNamespace(held_out=lessons, model=model, layout=chats.layout_of(made, base), devices=None, base=base)
    with pytest.raises(LuthierError, match="24 rows are not those that are held out now, such as other-0"):
        chat_judge._held_out(ready, SimpleNamespace(data=tmp_path), stage)


def test_a_pass_that_does_not_fit_is_scored_in_halves(held, monkeypatch):
    _, base, model, lessons = held
    layout = chats.layout_of(chats.recipe(micro_batch_size=8), base)
    whole = answer_losses(model, lessons, layout, Devices("float32"))
    inner, sizes = model.row_losses, []

    def row_losses(batch):
        sizes.append(len(batch.ids))
        if len(batch.ids) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return inner(batch)

    monkeypatch.setattr(model, "row_losses", row_losses)
    halves = answer_losses(model, lessons, layout, Devices("float32"))
    assert max(sizes) == 8
    np.testing.assert_allclose(halves.sum_R, whole.sum_R, rtol=1e-6)
    monkeypatch.setattr(model, "row_losses", lambda batch: (_ for _ in ()).throw(torch.OutOfMemoryError("never")))
    with pytest.raises(LuthierError, match="while one row was scored"):
        answer_losses(model, lessons, layout, Devices("float32"))
