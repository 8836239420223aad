"""Examination inside the loop: when it is called, that it may end a training, and that it changes none of its bits."""

from __future__ import annotations

from luthier.files import sha256_file
from luthier.train.loop import train
from support.chats import make_job, recipe


def weights(job, step):
    return sha256_file(job.checkpoints.path(step) / "adapter_model.safetensors")


def test_each_saved_step_is_examined_after_its_save_and_the_training_stays_the_same(tmp_path):
    plain = make_job(tmp_path / "plain", recipe(save_every=4))
    train(plain)
    job, seen = make_job(tmp_path / "examined", recipe(save_every=4)), []

    def examine(step: int) -> bool:
        assert max(job.checkpoints.steps(), default=0) == step
        assert not job.learner.training
        seen.append(step)
        return False

    job.examine = examine
    done = train(job)
    assert done.step == 12
    assert list(dict.fromkeys(seen)) == [0, 4, 8, 12]
    assert weights(job, 12) == weights(plain, 12)


def test_a_true_answer_ends_the_training_there_and_a_resumed_run_stays_ended(tmp_path):
    job = make_job(tmp_path, recipe(save_every=4))
    job.examine = lambda step: step == 8
    done = train(job)
    assert (done.step, done.stopped) == (8, True)
    again = make_job(tmp_path, recipe(save_every=4))
    again.examine = lambda step: step == 8
    assert train(again, resume=True).step == 8


def test_a_run_that_was_cut_between_a_save_and_its_examination_examines_first(tmp_path):
    cut = make_job(tmp_path, recipe(save_every=4))
    train(cut, until=8)
    job, seen = make_job(tmp_path, recipe(save_every=4)), []
    job.examine = lambda step: bool(seen.append((step, job.learner.training)))
    train(job, resume=True)
    assert seen[0] == (8, False)


def test_with_0_every_checkpoint_stays(tmp_path):
    job = make_job(tmp_path, recipe(save_every=1, keep_checkpoints=0))
    train(job)
    assert job.checkpoints.steps() == list(range(1, 13))
