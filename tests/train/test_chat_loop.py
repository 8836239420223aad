"""Chat training: the same loss however rows lie, and bit-exact resuming from every step of every kind of run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from luthier.errors import Interrupted, LuthierError, NonFiniteLoss
from luthier.evaluate.answers import answer_losses
from luthier.models.chat_batches import ChatFeed
from luthier.models.chat_model import compile_layers
from luthier.train import loop
from luthier.train.loop import train
from support import chats

KINDS = {
    "packed, dropout": {},
    "padded and grouped by length": {"packing": False},
    "passes of so many tokens": {"micro_batch_tokens": 90, "micro_batch_size": 4},
    "odd accumulation": {"batch_size": 5, "micro_batch_size": 2},
    "workers": {"workers": 2},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "label smoothing, LoRA+, rsLoRA": {"label_smoothing": 0.1, "loraplus_ratio": 4.0, "lora": {"use_rslora": True}},
    "DoRA": {"lora": {"use_dora": True}},
    "full": {"model": {"tuning": "full"}, "learning_rate": 1e-3},
    "full, muon, warm-up and decay": {
        "model": {"tuning": "full"},
        "optimizer": "muon",
        "schedule": "warmup_stable_decay",
    },
    "added tokens": {"model": {"added_tokens": ["<|note|>"]}},
    "another family": {"base": "toy:gemma2"},
    "adafactor, cosine": {"optimizer": "adafactor", "schedule": "cosine"},
    "bfloat16 base": {"model": {"dtype": "bfloat16"}},
    "8-bit AdamW": {"optimizer": "adamw_8bit"},
    "lion": {"optimizer": "lion", "learning_rate": 1e-3},
    "nf4 base": {"model": {"quantization": "nf4"}},
    "looks in between, best kept": {"validate_every": 2, "select": "best"},
    "memory ran out at step 3": {"out_of_memory_at": 3},
}
NEED_BITSANDBYTES = {"8-bit AdamW", "lion", "nf4 base"}


def job_of(folder: Path, kind: str, rows: int = 18) -> loop.Job:
    """A job of a kind: 8 to 10 steps over two epochs."""
    if kind in NEED_BITSANDBYTES:
        pytest.importorskip("bitsandbytes", reason="luthier[qlora] is not installed")
    settings = dict(KINDS[kind])
    made = chats.recipe(settings.pop("base", "toy:llama"))
    made.model = replace(made.model, **settings.pop("model", {}))
    made.model.lora = replace(made.model.lora, **settings.pop("lora", {}))
    breaks_at = settings.pop("out_of_memory_at", 0)
    made.train = replace(made.train, **settings)
    job = chats.make_job(folder, made, rows)
    if made.train.validate_every:
        base = chats.model_of(made)[0]
        held_out = chats.encode(base, chats.chats(6, seed=9))
        job.validate = lambda: answer_losses(job.learner, held_out, chats.layout_of(made, base), job.devices).mean
    if breaks_at:
        _run_out_of_memory(job, breaks_at)
    return job


def _run_out_of_memory(job: loop.Job, step: int) -> None:
    """Forward passes of more than one row raise at a step and after it."""
    inner = job.learner.loss

    def loss(batch, weights):
        if len(batch.ids) > 1 and batch.ids[0] in {job.feed.lessons.names[row] for row in job.feed.rows(step)}:
            raise torch.OutOfMemoryError("out of memory")
        return inner(batch, weights)

    job.learner.loss = loss


@pytest.mark.parametrize("kind", list(KINDS))
def test_resume_is_bit_exact_from_every_step(tmp_path, kind):
    whole = job_of(tmp_path / "whole", kind)
    train(whole)
    expected = chats.outcome(whole)
    steps = whole.plan.steps
    assert steps >= 8
    for step in range(1, steps):
        folder = tmp_path / f"cut-{step}"
        shutil.copytree(tmp_path / "whole", folder)
        for checkpoint in folder.glob("checkpoints/step-*"):
            if int(checkpoint.name[5:]) > step:
                shutil.rmtree(checkpoint)
        torch.manual_seed(step * 7)  # whatever the process did before must not matter
        np.random.seed(step)
        job = job_of(folder, kind)
        train(job, resume=True)
        assert chats.outcome(job) == expected, f"resumed from step {step}"
        shutil.rmtree(folder)


@pytest.mark.parametrize("step", [3, 7])
def test_resume_is_bit_exact_in_a_fresh_process_and_another_folder(tmp_path, step):
    job = chats.make_job(tmp_path / "whole", chats.recipe(workers=1))
    train(job)
    expected = chats.outcome(job)
    moved = tmp_path / "elsewhere" / "moved"
    shutil.copytree(tmp_path / "whole", moved)
    for checkpoint in moved.glob("checkpoints/step-*"):
        if int(checkpoint.name[5:]) > step:
            shutil.rmtree(checkpoint)
    done = subprocess.run(
        [sys.executable, "-m", "support.chats", str(moved), json.dumps({"workers": 1})],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == expected


def gradients(made, folder: Path) -> tuple[int, float, torch.Tensor]:
    """Forward passes, loss and gradient of the first step, without dropout."""
    made.model.lora.dropout = 0.0
    job = chats.make_job(folder, made)
    with torch.no_grad():  # at the start lora_B is zero, and half of the gradient would be too
        for name, p in job.learner.tuned():
            p.copy_(torch.sin(torch.arange(p.numel()).reshape(p.shape) + len(name)) * 0.1)
    group = job.feed.batches(1)
    weights = job.learner.step_weights(group)
    total = 0.0
    for batch in group:
        share, _ = job.learner.loss(batch, weights)
        share.backward()
        total += float(share.detach())
    return len(group), total, torch.cat([p.grad.flatten() for _, p in job.learner.tuned()])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("base", ["toy:llama", "toy:gemma2"])
def test_loss_and_gradient_are_the_same_however_16_rows_lie(tmp_path, base, smoothing):
    found = {}
    for name, settings in {
        "16x1": {"micro_batch_size": 16},
        "4x4": {"micro_batch_size": 4},
        "1x16": {"micro_batch_size": 1},
        "tokens": {"micro_batch_size": 16, "micro_batch_tokens": 100},
        "padded 16x1": {"micro_batch_size": 16, "packing": False},
        "padded 3x6": {"micro_batch_size": 3, "packing": False},
    }.items():
        made = chats.recipe(base, batch_size=16, label_smoothing=smoothing, **settings)
        found[name] = gradients(made, tmp_path / name)
        if "padded" in name:  # grouped by length, so other rows make up the first step: compare with their own
            continue
    passes, loss, gradient = found["16x1"]
    assert passes == 1
    assert found["1x16"][0] == 16
    for name in ("4x4", "1x16", "tokens"):
        assert found[name][1] == pytest.approx(loss, abs=1e-6)
        torch.testing.assert_close(found[name][2], gradient, atol=1e-6, rtol=1e-5)
    assert found["padded 3x6"][1] == pytest.approx(found["padded 16x1"][1], abs=1e-6)
    torch.testing.assert_close(found["padded 3x6"][2], found["padded 16x1"][2], atol=1e-6, rtol=1e-5)


def test_packed_and_padded_rows_have_one_loss_and_gradient(tmp_path):
    packed = chats.recipe(batch_size=24, micro_batch_size=24)
    padded = chats.recipe(batch_size=24, micro_batch_size=24, packing=False)  # one step holds all rows, in any order
    first, second = gradients(packed, tmp_path / "a"), gradients(padded, tmp_path / "b")
    assert first[1] == pytest.approx(second[1], abs=1e-6)
    torch.testing.assert_close(first[2], second[2], atol=1e-6, rtol=1e-5)


def test_the_loss_is_torchs_own_over_the_learned_tokens(tmp_path):
    made = chats.recipe(batch_size=6, micro_batch_size=6)
    made.model.lora.dropout = 0.0
    job = chats.make_job(tmp_path, made)
    group = job.feed.batches(1)
    share, _ = job.learner.loss(group[0], job.learner.step_weights(group))
    losses, weights = [], []
    for row in job.feed.rows(1):
        lesson = job.feed.lessons[row]
        ids = torch.from_numpy(lesson.ids_L.astype(np.int64))[None]
        logits = job.learner.language_model(input_ids=ids).logits[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none"))
        weights.append(torch.from_numpy(lesson.weight_L[1:]))
    loss, weight = torch.cat(losses), torch.cat(weights)
    assert float(share) == pytest.approx(float((loss * weight).sum() / weight.sum()), abs=1e-6)


def test_evaluation_does_not_depend_on_how_rows_lie(tmp_path):
    made = chats.recipe()
    base, model = chats.model_of(made)
    lessons = chats.encode(base, chats.chats(16))
    job = chats.make_job(tmp_path, made)
    found = []
    for size in (1, 2, 4, 8, 16):
        for packing in (True, False):
            made.train = replace(made.train, micro_batch_size=size, packing=packing)
            found.append(answer_losses(model, lessons, chats.layout_of(made, base), job.devices))
    for other in found[1:]:
        np.testing.assert_allclose(other.sum_R, found[0].sum_R, rtol=1e-5)
        assert other.mean == pytest.approx(found[0].mean, abs=1e-6)
        assert other.weight_R.tolist() == found[0].weight_R.tolist()


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize(("rows", "size"), [(24, 4), (23, 4), (100, 3), (5, 8)])
def test_every_epoch_shows_every_row_once_and_any_step_can_be_asked_for_first(rows, size, packing):
    made = chats.recipe(batch_size=size, packing=packing)
    base, _ = chats.model_of(made)
    lessons = chats.encode(base, chats.chats(rows))

    def order(epoch):
        return np.random.default_rng([1, epoch]).permutation(rows)

    feed = ChatFeed(lessons, order, chats.layout_of(made, base), 1)
    per_epoch = -(-rows // size)
    assert feed.steps_per_epoch == per_epoch
    for epoch in range(3):
        steps = [list(feed.rows(epoch * per_epoch + step + 1)) for step in range(per_epoch)]
        assert sorted(row for step in steps for row in step) == list(range(rows))
        assert [len(step) for step in steps[:-1]] == [size] * (per_epoch - 1)
    late = ChatFeed(lessons, order, chats.layout_of(made, base), 1)
    assert late.rows(2 * per_epoch + 1) == feed.rows(2 * per_epoch + 1)


def test_padded_steps_hold_rows_of_like_length():
    made = chats.recipe(batch_size=8, packing=False)
    base, _ = chats.model_of(made)
    lessons = chats.encode(base, chats.chats(256, longest=40))
    waste = {}
    for packing in (False, True):  # packed steps take the rows as they come
        layout = replace(chats.layout_of(made, base), packed=packing, micro_rows=8)
        feed = ChatFeed(lessons, lambda epoch: np.random.default_rng(epoch).permutation(256), layout, 1)
        steps = [lessons.lengths[list(feed.rows(step))] for step in range(1, 33)]
        waste[packing] = sum(int(s.max() * len(s) - s.sum()) for s in steps) / int(lessons.lengths.sum())
    assert waste[False] < 0.1 < waste[True]


def test_nan_stops_before_the_step_and_names_the_rows(tmp_path):
    job = chats.make_job(tmp_path / "nan", chats.recipe(log_every=4, save_every=4), poison=7)
    bad = next(step for step in range(1, 7) if 7 in job.feed.rows(step))
    clean = chats.make_job(tmp_path / "clean", chats.recipe(log_every=4, save_every=4))
    if bad > 1:
        train(clean, until=bad - 1)
    with pytest.raises(NonFiniteLoss, match=f"step {bad}: .*row-7"):
        train(job)
    for (name, p), (_, wanted) in zip(job.learner.tuned(), clean.learner.tuned(), strict=True):
        assert torch.equal(p, wanted), f"{name} moved at or after the bad step"
    assert all(step < bad for step in job.checkpoints.steps())


def test_between_looks_nothing_is_read_from_the_device(tmp_path, monkeypatch):
    job = chats.make_job(tmp_path, chats.recipe(log_every=100, save_every=100, epochs=1, max_steps=6))
    reads = []

    class Counting(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten._local_scalar_dense.default:
                reads.append(str(function))
            return function(*args, **(kwargs or {}))

    for name in ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__"):
        inner = getattr(torch.Tensor, name)

        def counted(self, *args, _inner=inner, _name=name, **kwargs):
            reads.append(_name)
            return _inner(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counted)
    counts = []

    def counting(inner):
        def counted(self, *args):
            before = len(reads)
            with Counting():
                found = inner(self, *args)
            counts.append(reads[before:])
            return found

        return counted

    for name in ("_gradients", "_step"):
        monkeypatch.setattr(loop._Training, name, counting(getattr(loop._Training, name)))
    train(job)
    assert counts == [[]] * 12
    assert reads, "the looks are counted, so the counting works"


def test_memory_that_runs_out_halves_the_passes_and_keeps_the_rows_of_a_step(tmp_path, capsys):
    plain = chats.recipe(batch_size=8, micro_batch_size=8)
    plain.model.lora.dropout = 0.0
    small = chats.make_job(tmp_path / "small", plain)
    inner, passes = small.learner.loss, []

    def loss(batch, weights):
        passes.append(len(batch.ids))
        if len(batch.ids) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return inner(batch, weights)

    small.learner.loss = loss
    done = train(small)
    assert done.halvings == 2
    assert max(passes[-3:]) == 2
    assert "the 8 rows of a step stay the same" in capsys.readouterr().err
    large = chats.make_job(tmp_path / "large", plain)
    assert train(large).rows == done.rows
    for (_, p), (_, wanted) in zip(small.learner.tuned(), large.learner.tuned(), strict=True):
        torch.testing.assert_close(p, wanted, atol=1e-5, rtol=1e-4)


def test_memory_that_one_row_exhausts_is_an_error_with_its_mend(tmp_path):
    job = chats.make_job(tmp_path, chats.recipe())

    def loss(batch, weights):
        raise torch.OutOfMemoryError("out of memory")

    job.learner.loss = loss
    with pytest.raises(LuthierError, match=r"step 1: memory ran out with one row[\s\S]*model.max_tokens"):
        train(job)


def test_sigterm_saves_the_step_and_resumes_to_the_same_bytes(tmp_path, monkeypatch):
    whole = chats.make_job(tmp_path / "whole", chats.recipe(save_every=5))
    train(whole)
    job = chats.make_job(tmp_path / "term", chats.recipe(save_every=5))
    taken = loop._Training._after_step

    def stop_at_four(self):
        taken(self)
        if self.done.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop._Training, "_after_step", stop_at_four)
    with pytest.raises(Interrupted) as caught:
        train(job)
    assert caught.value.exit_code == 130
    assert job.checkpoints.steps() == [4]
    monkeypatch.undo()
    again = chats.make_job(tmp_path / "term", chats.recipe(save_every=5))
    train(again, resume=True)
    assert chats.outcome(again) == chats.outcome(whole)


def test_early_stopping_ends_after_patience_and_a_finished_run_stays_finished(tmp_path):
    made = chats.recipe(validate_every=1, early_stopping_patience=2, save_every=100)
    job = chats.make_job(tmp_path, made)
    values = iter([3.0, 2.0, 2.5, 2.25, 1.0, 1.0])
    job.validate = lambda: next(values)
    done = train(job)
    assert (done.step, done.best_step, done.stopped) == (4, 2, True)
    again = chats.make_job(tmp_path, made)
    again.validate = lambda: pytest.fail("a stopped run looked again")
    assert train(again, resume=True).step == 4


def test_a_training_whose_loss_reaches_no_tensor_is_an_error(tmp_path):
    job = chats.make_job(tmp_path, chats.recipe())
    inner = job.learner.loss

    def cut(batch, weights):
        share, main = inner(batch, weights)
        return share * 0.0, main

    job.learner.loss = cut
    with pytest.raises(LuthierError, match="no trainable tensor has had a gradient"):
        train(job)


def test_tensors_without_a_gradient_are_named(tmp_path, capsys):
    job = chats.make_job(tmp_path, chats.recipe())
    stray = torch.nn.Parameter(torch.ones(3))
    job.learner.register_parameter("stray", stray)
    job.optimizer.add_param_group({"params": [stray], "base_rate": 0.1, "muon": False})
    done = train(job)
    assert done.silent == ["stray"]
    assert "stray" in capsys.readouterr().err


def _first_state(job: loop.Job) -> bytes:
    return b"".join(p.detach().numpy().tobytes() for _, p in job.learner.tuned())


def test_resuming_at_rate_0_keeps_every_byte(tmp_path):
    job = chats.make_job(tmp_path, chats.recipe(max_steps=3, weight_decay=0.0))
    train(job)
    saved = _first_state(job)
    again = chats.make_job(tmp_path, chats.recipe(max_steps=3, weight_decay=0.0))
    assert _first_state(again) != saved
    train(again, resume=True)
    assert _first_state(again) == saved


@pytest.mark.slow
def test_compiled_layers_learn_the_same(tmp_path):
    made = chats.recipe(max_steps=6)
    made.model.lora = replace(made.model.lora, dropout=0.0)  # compiled dropout draws other numbers
    plain, compiled = (chats.make_job(tmp_path / name, made) for name in ("plain", "compiled"))
    compile_layers(compiled.learner.language_model)
    train(plain)
    train(compiled)
    for (name, p), (other, wanted) in zip(compiled.learner.tuned(), plain.learner.tuned(), strict=True):
        assert name == other
        torch.testing.assert_close(p, wanted, atol=1e-5, rtol=1e-4)


def test_memory_that_runs_out_in_the_optimizer_ends_the_run_before_the_step_counts(tmp_path):
    job = chats.make_job(tmp_path, chats.recipe(save_every=2, log_every=1))
    inner, calls = job.optimizer.step, []

    def step(*args, **more):
        calls.append(1)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("out of memory")
        return inner(*args, **more)

    job.optimizer.step = step
    with pytest.raises(LuthierError, match="step 4: memory ran out in the optimizer"):
        train(job)
    assert job.checkpoints.steps() == [2]
    assert [json.loads(line)["step"] for line in job.metrics.read_text().splitlines()] == [1, 2, 3]


def test_epochs_of_different_lengths_end_where_their_rows_do(tmp_path):
    made = chats.recipe(batch_size=4)
    base, _ = chats.model_of(made)
    lessons = chats.encode(base, chats.chats(20))
    sizes = (10, 20, 5, 12)
    feed = ChatFeed(lessons, lambda epoch: np.arange(sizes[epoch]), chats.layout_of(made, base), 1)
    ends = [step for step in range(1, 14) if feed.ends_epoch(step)]
    assert ends == [3, 8, 10, 13]
    assert [feed.epoch_at(step) for step in ends] == [1, 2, 3, 4]
    assert [len(feed.rows(step)) for step in (3, 8, 10)] == [2, 4, 1]
