"""Rows with media in one pass: each row's loss and gradient are those of the row alone, however the rows lie."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from luthier.evaluate.answers import answer_losses
from luthier.models import adapters
from luthier.models.chat_batches import ChatFeed, Layout, collate
from luthier.models.feeds import stream
from luthier.models.lessons import Lessons
from luthier.recipe_data import Augmentation
from luthier.runtime.devices import Devices
from support import seeing
from support.seeing import Seeing


@pytest.fixture(scope="module", params=seeing.TOYS)
def twin(request):
    found = Seeing.of(request.param)
    return found, found.lessons(seeing.mixed(found.supply.senses.kinds))


def passes(twin, lessons, packed, rows_of_a_pass):
    groups = [lessons[at : at + rows_of_a_pass] for at in range(0, len(lessons), rows_of_a_pass)]
    return [collate(group, packed, 0, twin.supply) for group in groups]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("rows_of_a_pass", [2, 100])
@torch.no_grad()
def test_the_loss_of_every_row_is_that_of_the_row_alone(twin, packed, rows_of_a_pass):
    found, lessons = twin
    alone = [loss for batch in passes(found, lessons, False, 1) for loss in found.model.row_losses(batch)]
    together = [
        loss for batch in passes(found, lessons, packed, rows_of_a_pass) for loss in found.model.row_losses(batch)
    ]
    for one, other in zip(alone, together, strict=True):
        assert one.weight == other.weight
        assert float(other.sum) == pytest.approx(float(one.sum), rel=1e-5)


def gradients(found, batches):
    found.model.zero_grad()
    weights = found.model.step_weights(batches)
    for batch in batches:
        found.model.loss(batch, weights)[0].backward()
    return {name: weight.grad for name, weight in found.model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("packed", [True, False])
def test_the_gradient_of_a_step_is_that_of_its_rows_one_by_one(twin, packed):
    found, lessons = twin
    alone = gradients(found, passes(found, lessons, False, 1))
    together = gradients(found, passes(found, lessons, packed, 100))
    assert set(alone) == set(together)
    reached = dict.fromkeys(found.supply.senses.kinds, False)
    for name, gradient in alone.items():
        assert torch.allclose(together[name], gradient, rtol=1e-4, atol=1e-6), name
        for kind, names in found.supply.senses.encoders.items():
            reached[kind] |= name.removeprefix("language_model.").startswith(names) and bool(gradient.any())
    assert all(reached.values()), reached


@torch.no_grad()
def test_a_picture_and_a_recording_move_the_loss(twin):
    found, lessons = twin
    for lesson in lessons:
        batch = collate([lesson], False, 0, found.supply)
        before = float(found.model.row_losses(batch)[0].sum)
        for one in batch.media.prepared if batch.media else ():
            for value in one.inputs.values():
                if value.is_floating_point():
                    value.mul_(0.5).add_(0.3)
        assert (float(found.model.row_losses(batch)[0].sum) == before) == (not lesson.media)


def test_slots_targets_and_positions_lie_as_the_rows_do(twin):
    found, lessons = twin
    senses = found.supply.senses
    axes = 3 if "Qwen" in type(senses).__name__ else 1
    for packed in (True, False):
        batch = collate(lessons, packed, 7, found.supply)
        assert batch.packed == (packed and senses.keeps_causal)
        lines, width = batch.input_ids_BL.shape
        assert batch.position_ids_BL.shape == ((3,) if axes == 3 else ()) + (lines, width)
        assert batch.tokens == sum(len(lesson.ids_L) for lesson in lessons)
        assert bool((batch.input_ids_BL.flatten()[batch.slot_M] == 7).all())
        assert len(batch.slot_M) == sum(medium.slots for lesson in lessons for medium in lesson.media)
        seen = sum(medium.slots for lesson in lessons for medium in lesson.media if medium.kind != "audio")
        assert int(batch.seen_BL.sum()) == seen
        targets = np.concatenate([lesson.ids_L[lesson.weight_L > 0] for lesson in lessons])
        assert batch.target_N.tolist() == targets.tolist()
    alone = collate(lessons[:1], True, 7, found.supply)
    assert (alone.media, alone.slot_M, alone.seen_BL) == (None, None, None)


def feed_of(found, lessons, packed=True, **augmentation):
    supply = replace(found.supply, augmentation=Augmentation(**augmentation))
    order = lambda epoch: np.random.default_rng(epoch).permutation(len(lessons))
    return ChatFeed(Lessons.of(lessons), order, Layout(3, 2, 0, packed), 5, supply=supply)


def inputs_of(feed, steps, halvings=0):
    """The pixels or mel frames of all media of some steps, by row."""
    found = {}
    counts = {lesson.id: len(lesson.media) for lesson in map(feed.lessons.__getitem__, range(len(feed.lessons)))}
    for batch in (batch for step in steps for batch in feed.batches(step, halvings)):
        prepared = iter([batch.media.prepared[which] for which in batch.media.which] if batch.media else [])
        for name in batch.ids:
            inputs = [next(prepared).inputs.values() for _ in range(counts[name])]
            found[name] = [next(value for value in values if value.is_floating_point()) for values in inputs]
    return found


def test_workers_bring_the_same_batches(twin):
    found, lessons = twin
    feed = feed_of(found, lessons, colour=0.3)
    here, there = (list(stream(feed, 1, 3, workers=workers)) for workers in (0, 1))
    for one, other in zip((b for step in here for b in step), (b for step in there for b in step), strict=True):
        assert one.ids == other.ids
        assert torch.equal(one.position_ids_BL, other.position_ids_BL)
        assert (one.media is None) == (other.media is None)
        if one.media is not None:
            assert torch.equal(one.slot_M, other.slot_M)
            for mine, theirs in zip(one.media.prepared, other.media.prepared, strict=True):
                assert all(torch.equal(mine.inputs[key], theirs.inputs[key]) for key in mine.inputs)


def test_what_augmentation_draws_follows_from_epoch_and_row_and_not_from_the_pass(twin):
    found, lessons = twin
    plain, changed = feed_of(found, lessons), feed_of(found, lessons, colour=0.5)
    size = plain.steps_per_epoch
    first, second = (inputs_of(changed, range(epoch * size + 1, (epoch + 1) * size + 1)) for epoch in (0, 1))
    untouched = inputs_of(plain, range(1, size + 1))
    packed_otherwise = inputs_of(changed, range(1, size + 1), halvings=1)
    assert set(first) == set(second) == {lesson.id for lesson in lessons}
    for name, values in first.items():
        assert all(map(torch.equal, values, packed_otherwise.get(name, values)))
        for value, other, original in zip(values, second[name], untouched[name], strict=True):
            sound = name in ("row-5", "row-6")
            assert torch.equal(value, original) == torch.equal(value, other) == sound


def test_what_is_not_tuned_stays_in_evaluation_mode(twin):
    found, _ = twin
    model, senses = found.model, found.supply.senses
    bare = model.language_model
    names = {name for kind in senses.kinds for name in senses.encoders[kind]}
    inside = [module for name, module in bare.named_modules() if name.startswith(tuple(names))]
    assert inside
    try:
        model.train()
        assert all(module.training for module in inside)
        for name, weight in bare.named_parameters():
            weight.requires_grad_(not name.startswith(tuple(names)))
        model.train()
        assert not any(module.training for module in inside)
        assert senses.decoder(bare).training
    finally:
        bare.requires_grad_(True)
        model.eval()


@pytest.mark.parametrize("name", seeing.TOYS)
def test_layers_that_are_computed_again_give_the_same_gradients(name):
    plain, again = Seeing.of(name), Seeing.of(name)
    adapters.checkpoint_activations(again.model.language_model)
    found = []
    for one in (plain, again):
        one.model.train()
        lessons = one.lessons(seeing.mixed(one.supply.senses.kinds)[:3])
        found.append(gradients(one, passes(one, lessons, True, 100)))
    assert all(torch.allclose(found[1][key], gradient, rtol=1e-4, atol=1e-6) for key, gradient in found[0].items())


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("micro_tokens", [0, 100_000])
@torch.no_grad()
def test_a_text_that_stretches_positions_moves_no_other_row(packed, micro_tokens):
    """Long-rope chooses its frequencies by the longest text of a pass."""
    twin = Seeing.of("toy:phi3-vision", max_tokens=8192)
    limit = twin.model.alone_beyond
    long = [seeing.asked(8 + place, ["word " * limit], "green") for place in range(2)]
    lessons = twin.lessons([*seeing.mixed(twin.supply.senses.kinds), *long])
    assert 0 < limit < len(lessons[-1].ids_L)
    alone = [float(twin.model.row_losses(collate([one], False, 0, twin.supply))[0].sum) for one in lessons]
    mixed = [float(one.sum) for one in twin.model.row_losses(collate(lessons, packed, 0, twin.supply))]
    assert mixed[0] != pytest.approx(alone[0], rel=1e-4)  # it would matter
    layout = Layout(len(lessons), 100, micro_tokens, packed, alone_beyond=limit)
    found = answer_losses(twin.model, Lessons.of(lessons), layout, Devices("float32"), supply=twin.supply)
    assert found.sum_R == pytest.approx(alone, rel=1e-5)
    feed = ChatFeed(Lessons.of(lessons), lambda _: np.arange(len(lessons)), layout, 5, supply=twin.supply)
    trained = [(batch.ids, twin.model.row_losses(batch)) for batch in feed.batches(1)]
    by_row = {name: float(loss.sum) for ids, losses in trained for name, loss in zip(ids, losses, strict=True)}
    assert by_row == pytest.approx({one.id: loss for one, loss in zip(lessons, alone, strict=True)}, rel=1e-5)
