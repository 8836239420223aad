"""Judging: company and order do not change a probability, and the deafness test swaps what it should."""

from __future__ import annotations

import numpy as np
import pytest

from luthier.evaluate.verdicts import Judge, swap_media
from support.jobs import make_job, recipe


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    made = recipe()
    made.model.tuning = "full"  # the encoder runs live: the harder case
    return make_job(tmp_path_factory.mktemp("judge") / "run", made)


def judge_of(job, size: int = 32) -> Judge:
    return Judge(job.learner, job.feed.store, job.devices, job.feed.pad_id, size)


@pytest.mark.parametrize("size", [1, 5, 24])
def test_an_answer_is_judged_the_same_in_any_company(job, size):
    examples = job.feed.examples
    alone = np.concatenate([judge_of(job, 1)([e]).p_pass for e in examples])
    together = judge_of(job, size)(examples[::-1]).p_pass[::-1]
    assert np.abs(alone - together).max() < 1e-6
    assert alone.std() > 1e-4  # the comparison would be empty otherwise


def test_judging_leaves_the_mode_of_the_model_alone(job):
    judge = judge_of(job)
    job.learner.train()
    judge(job.feed.examples[:2])
    assert job.learner.training
    job.learner.eval()
    judge(job.feed.examples[:2])
    assert not job.learner.training


def test_swapping_keeps_questions_and_grades_and_moves_every_recording(job):
    examples = job.feed.examples
    audio = examples[0].ids[examples[0].media_at]
    swapped = swap_media(examples, seed=3, rounds=2)
    assert len(swapped) == 2 * len(examples) == len({e.id for e in swapped})
    by_id = {e.id: e for e in examples}
    for turn in range(2):
        part = [e for e in swapped if e.id.endswith(f"#{turn}")]
        assert sorted(e.media for e in part) == sorted(e.media for e in examples)
    for other in swapped:
        own = by_id[other.id.partition("#")[0]]
        assert other.media != own.media
        assert (other.grade, other.target, other.group) == (own.grade, own.target, own.group)
        assert other.ids.count(audio) == other.media_length
        assert [i for i in other.ids if i != audio] == [i for i in own.ids if i != audio]
    assert swap_media(examples, seed=3, rounds=2) == swapped
