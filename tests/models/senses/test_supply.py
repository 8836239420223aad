"""A batch has its media in the order of their slots, stored or live or augmented, and what it holds does not matter."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from luthier.data.augment import augment_picture
from luthier.data.mediasource import MediaSource
from luthier.errors import DataError, MediaError
from luthier.models.senses.base import Medium
from luthier.models.senses.store import VectorStore
from luthier.models.senses.supply import Draw, MediaBatch, Supply
from luthier.recipe_data import Augmentation
from support.mediabox import SAMPLES, MediaBox, SmallBase, SmallSenses
from support.sightings import picture

CUT = Augmentation(crop=0.4, colour=0.2)


@pytest.fixture
def box():
    return MediaBox()


@pytest.fixture
def media(box):
    """Pictures and recordings by turns."""
    senses = SmallSenses()
    pictures = [box.medium(senses, "image", box.picture(picture(8 * (1 + n) + n, 9, seed=n))) for n in range(4)]
    sounds = [box.medium(senses, "audio", box.sound(0.1 * (n + 1) + 0.013, 200 * (n + 1))) for n in range(3)]
    return [pictures[0], sounds[0], pictures[1], pictures[2], sounds[1], pictures[0], sounds[2], pictures[3]]


def draws(media: list[Medium], epoch: int = 0) -> list[Draw]:
    return [Draw(0, epoch, "row", place) for place in range(len(media))]


def supply(box, tmp_path=None, model=None, kinds=(), media=(), augmentation=None) -> Supply:
    senses = SmallSenses()
    stores = {kind: VectorStore(tmp_path, senses, box.source, model, kind) for kind in kinds}
    for kind, store in stores.items():
        store.prepare([medium for medium in media if medium.kind == kind])
    return Supply(senses, box.source, augmentation or Augmentation(), stores)


def alone(found: Supply, model, media: list[Medium], each: list[Draw] | None = None) -> torch.Tensor:
    parts = [
        found.batch([medium], None if each is None else [each[place]]).vectors(found.senses, model)
        for place, medium in enumerate(media)
    ]
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("kinds", [(), ("image",), ("audio",), ("image", "audio")])
def test_vectors_are_those_of_each_medium_in_order_stored_or_live(box, media, tmp_path, kinds):
    model = SmallBase()
    expected = alone(supply(box), model, media)
    found = supply(box, tmp_path, model, kinds, media)
    batch = found.batch(media)
    vectors = batch.vectors(found.senses, model)
    assert vectors.shape[1] == sum(medium.slots for medium in media)
    assert torch.equal(vectors, expected)
    assert {one.kind for one in batch.prepared} == {"image", "audio"} - set(kinds)


def test_stored_kinds_open_no_files(box, media, tmp_path):
    found = supply(box, tmp_path, SmallBase(), ("image", "audio"), media)
    box.opened.clear()
    batch = found.batch(media)
    assert box.opened == []
    assert batch.prepared == ()
    assert torch.equal(batch.vectors(found.senses, None), batch.stored_KMD)


def test_text_alone_has_no_vectors(box):
    found = supply(box)
    assert found.batch([]).to("cpu").vectors(found.senses, None) is None


def test_equal_media_of_a_batch_are_prepared_once(box, media):
    found = supply(box)
    batch = found.batch(media)
    assert len(box.opened) == len(batch.prepared) == len(set(media)) == len(media) - 1
    assert batch.which[0] == batch.which[5]
    model = SmallBase()
    vectors = batch.vectors(found.senses, model)
    ends = np.cumsum([medium.slots for medium in media])
    assert torch.equal(vectors[:, : ends[0]], vectors[:, ends[4] : ends[5]])


def test_a_medium_that_is_not_in_the_store_goes_live(box, media, tmp_path):
    model = SmallBase()
    found = supply(box, tmp_path, model, ("image", "audio"), media[:2])
    batch = found.batch(media)
    assert 0 < len(batch.prepared) < len(media)
    assert torch.equal(batch.vectors(found.senses, model), alone(supply(box), model, media))


def test_augmented_pictures_go_live_beside_stored_sound(box, media, tmp_path):
    model, each = SmallBase(), draws(media)
    found = supply(box, tmp_path, model, ("image", "audio"), media, CUT)
    batch = found.batch(media, each)
    assert {one.kind for one in batch.prepared} == {"image"}
    assert len(batch.prepared) == sum(medium.kind == "image" for medium in media)  # the two equal ones differ now
    vectors = batch.vectors(found.senses, model)
    assert torch.equal(vectors, alone(found, model, media, each))
    # By hand: the first picture, cut as its draw says.
    shown = augment_picture(box.source.load("image", media[0].reference), CUT, each[0])
    expected = found.senses.encode(model, [found.senses.prepare("image", shown)])[0]
    assert torch.equal(vectors[:, : media[0].slots], expected)
    plain = alone(supply(box), model, media)
    assert not torch.equal(vectors, plain)
    assert torch.equal(found.batch(media).vectors(found.senses, model), plain)  # rows that are scored are not changed


def test_augmentation_follows_from_the_draw_alone(box, media):
    model, found = SmallBase(), supply(box, augmentation=replace(CUT, noise=0.1, speed=0.1, gain=3.0))
    first = alone(found, model, media, draws(media))
    assert torch.equal(found.batch(media, draws(media)).vectors(found.senses, model), first)
    backwards = found.batch(media[::-1], draws(media)[::-1]).vectors(found.senses, model)
    parts = torch.split(backwards, [medium.slots for medium in media[::-1]], dim=1)
    assert torch.equal(torch.cat(parts[::-1], dim=1), first)
    assert not torch.equal(alone(found, model, media, draws(media, epoch=1)), first)


def test_sound_at_another_speed_keeps_the_slots_of_its_row(box):
    senses, found = SmallSenses(), supply(box, augmentation=Augmentation(speed=0.3))
    lengths = set()
    for number, samples in enumerate((3 * SAMPLES - 500, 3 * SAMPLES, 3 * SAMPLES + 1, 2 * SAMPLES - 900)):
        medium = box.medium(senses, "audio", box.sound(samples / 16_000, 300 + number))
        for row in range(20):
            batch = found.batch([medium], [Draw(0, 0, str(row), 0)])
            assert batch.prepared[0].slots == medium.slots
            filled = batch.prepared[0].inputs["samples"].flatten().numpy()
            lengths.add((number, int(np.flatnonzero(np.abs(filled) > 1e-4)[-1])))
    slower = [last for number, last in lengths if number == 0 and last > 3 * SAMPLES - 490]
    assert slower  # the room up to the end of the slot is used
    assert max(slower) < 3 * SAMPLES


def test_the_frames_of_a_film_are_changed_in_one_way(box):
    shown = picture(64, 40)
    source = MediaSource(box.data, box.source.limits, box.source.frames)
    object.__setattr__(source, "load", lambda kind, reference: shown)
    found = Supply(SmallSenses(), source, replace(CUT, flip=True, noise=0.1))
    film, other = (f"sha256:{digit * 64}" for digit in "ab")
    frames = [Medium("image", f"{film}#frame={number}", 8) for number in range(3)]
    others = [Medium("image", other, 8), Medium("image", f"{other}#frame=0", 8)]
    pixels = [one.inputs["pixels"] for one in found.batch([*frames, *others], draws([*frames, *others])).prepared]
    assert torch.equal(pixels[0], pixels[1])
    assert torch.equal(pixels[0], pixels[2])
    assert not torch.equal(pixels[0], pixels[3])
    assert not torch.equal(pixels[0], pixels[4])


def test_the_sound_of_a_film_keeps_its_speed(box):
    found = supply(box, augmentation=Augmentation(speed=0.3))
    reference = box.sound(0.5)
    medium = Medium("audio", f"{reference}#sound", 5)
    object.__setattr__(found.source, "load", lambda kind, name: MediaSource.load(box.source, kind, name[:71]))
    plain = found.batch([medium]).prepared[0].inputs["samples"]
    changed = found.batch([medium], [Draw(0, 0, "r", 0)]).prepared[0].inputs["samples"]
    torch.testing.assert_close(changed, plain, rtol=0, atol=1e-6)


def test_gradients_reach_a_tuned_projector_and_nothing_that_is_frozen(box, media):
    model, found = SmallBase(), supply(box)
    model.eye_out.requires_grad_(True)
    vectors = found.batch(media).vectors(found.senses, model)
    vectors.square().sum().backward()
    assert model.eye_out.weight.grad.abs().sum() > 0
    assert model.ear_out.weight.grad is None
    model.eye_out.requires_grad_(False)
    assert not found.batch(media).vectors(found.senses, model).requires_grad


def test_a_batch_comes_whole_through_a_worker_process(box, media, tmp_path):
    model = SmallBase()
    found = supply(box, tmp_path, model, ("audio",), media)
    batch = found.batch(media)
    sent: MediaBatch = pickle.loads(pickle.dumps(batch))
    assert torch.equal(sent.to("cpu").vectors(found.senses, model), batch.vectors(found.senses, model))


@pytest.mark.parametrize("kinds", [(), ("image", "audio")])
@pytest.mark.parametrize("place", [0, 1])
def test_another_number_of_vectors_than_slots_is_refused_with_its_row(box, media, tmp_path, kinds, place):
    found = supply(box, tmp_path, SmallBase(), kinds, media)
    wrong = [replace(one, slots=one.slots + (at == place)) for at, one in enumerate(media[:2])]
    # The store knows the medium by what it is, not by the slots that a row has for it.
    with pytest.raises(DataError, match=f"row r{place}: .*{wrong[place].slots} slots"):
        found.batch(wrong, None, ["r0", "r1"])


def test_an_encoder_that_makes_more_than_was_foreseen_is_refused(box, media):
    found = supply(box)
    batch = found.batch(media[:1])
    batch.prepared = (replace(batch.prepared[0], slots=batch.prepared[0].slots + 1),)
    with pytest.raises(DataError, match="were foreseen"):
        batch.vectors(found.senses, SmallBase())


def test_media_that_cannot_be_decoded_are_named_with_their_row(box):
    torn = box.put(b"\x89PNG\r\n\x1a\n torn")
    with pytest.raises(MediaError, match=f"row r7: {torn}"):
        supply(box).batch([Medium("image", torn, 1)], None, ["r7"])
