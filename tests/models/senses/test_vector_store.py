"""Stored vectors are the live ones, are made once, and never those of another encoder, processor or way to see."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from dataclasses import replace

import pytest
import torch

from luthier.data.mediasource import MediaSource
from luthier.errors import DataError, DiskError, MediaError
from luthier.models.senses import store as store_module
from luthier.models.senses.base import Medium
from luthier.models.senses.store import VectorStore, ahead, filled, tuned
from luthier.recipe_data import Frames
from support.mediabox import MediaBox, SmallBase, SmallSenses
from support.sightings import ODD_SIZES, Sight, picture

TOYS = (
    "toy:phi4-multimodal",
    "toy:gemma3-vision",
    "toy:smolvlm",
    "toy:llava-onevision",
    "toy:qwen2.5-vl",
    "toy:qwen3-vl",
    "toy:phi3-vision",
)


@pytest.fixture
def box():
    found = MediaBox()
    for number in range(9):
        found.picture(picture(8 + 5 * number, 16))
    return found


def known(box) -> list[Medium]:
    return box.media(SmallSenses())


def made(folder, box, model=None, senses=None, kind="image") -> VectorStore:
    return VectorStore(folder, senses or SmallSenses(), box.source, model or SmallBase(), kind)


@pytest.mark.parametrize("name", TOYS)
def test_stored_vectors_are_the_live_ones(tmp_path, name):
    sight, box = Sight.of(name), MediaBox()
    shown = [picture(*size) for size in ODD_SIZES if min(size) > 7]
    media = [box.medium(sight.senses, "image", box.picture(one)) for one in shown]
    store = VectorStore(tmp_path, sight.senses, box.source, sight.model, "image")
    store.prepare(media)
    again = VectorStore(tmp_path, sight.senses, box.source, sight.model, "image")
    prepared = [sight.senses.prepare("image", one) for one in shown]
    with torch.no_grad():
        together = sight.senses.encode(sight.model, prepared)
        alone = [sight.senses.encode(sight.model, [one])[0] for one in prepared]
    for medium, single, grouped in zip(media, alone, together, strict=True):
        assert medium.slots == single.shape[1]
        assert torch.equal(again.load(medium), single)
        torch.testing.assert_close(again.load(medium), grouped, rtol=1e-5, atol=1e-5)


def test_recordings_of_a_base_that_hears_are_stored_as_they_are_read(tmp_path):
    sight, box = Sight.of("toy:phi4-multimodal"), MediaBox()
    for seconds in (0.3, 0.64, 1.7, 0.3001):
        box.sound(seconds, 300 + 200 * seconds)
    media = box.media(sight.senses, "audio")
    beside = [replace(medium, mode=sight.senses.modes(["image", "audio"])[1]) for medium in media]
    store = VectorStore(tmp_path, sight.senses, box.source, sight.model, "audio")
    store.prepare([*media, *beside])
    for medium in (*media, *beside):
        prepared = sight.senses.prepare("audio", box.source.load("audio", medium.reference))
        with torch.no_grad():
            expected = sight.senses.encode(sight.model, [replace(prepared, mode=medium.mode)])[0]
        assert medium.slots == expected.shape[1]
        assert torch.equal(store.load(medium), expected)
    assert not torch.equal(store.load(media[0]), store.load(beside[0]))


def test_recordings_are_stored_beside_pictures(tmp_path):
    heard, seen, model, senses = MediaBox(), MediaBox(), SmallBase(), SmallSenses()
    for seconds in (0.3, 1.01):
        heard.sound(seconds)
    seen.picture(picture(40, 8))
    places = set()
    for box, kind, slots in ((heard, "audio", [3, 11]), (seen, "image", [5])):
        store = made(tmp_path, box, model, senses, kind)
        store.prepare(box.media(senses, kind))
        places.add(store.place)
        for medium, count in zip(box.media(senses, kind), slots, strict=True):
            expected = senses.encode(model, [store.prepared(medium)])[0]
            assert torch.equal(store.load(medium), expected)
            assert expected.shape == (2, count, 6)
    assert len(places) == 2


def test_bfloat16_bases_are_kept_in_sixteen_bits(tmp_path, box):
    model, senses = SmallBase().to(torch.bfloat16).eval(), SmallSenses()
    plain = senses.encode

    def encode(model, prepared):
        return plain(model, [replace(one, inputs={"pixels": one.inputs["pixels"].bfloat16()}) for one in prepared])

    senses.encode = encode
    store = made(tmp_path, box, model, senses)
    store.prepare(known(box))
    for medium in known(box):
        found = store.load(medium)
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, encode(model, [store.prepared(medium)])[0])
    assert store.files.nbytes == sum(path.stat().st_size for path in store.place.glob("*.raw"))


def test_nothing_is_made_twice(tmp_path, box):
    made(tmp_path, box).prepare([*known(box), *known(box)])
    assert sorted(box.opened) == sorted(box.blobs)
    box.opened.clear()
    again = made(tmp_path, box)
    again.prepare(known(box))
    assert box.opened == []
    extra = box.picture(picture(99, 8))
    again.prepare(known(box))
    assert box.opened == [extra]


def test_a_frozen_encoder_in_training_mode_has_no_dropout_in_the_store(tmp_path, box):
    expected = made(tmp_path / "a", box, SmallBase().eval())
    found = made(tmp_path / "b", box, SmallBase().train())
    for store in (expected, found):
        store.prepare(known(box))
    assert all(torch.equal(expected.load(one), found.load(one)) for one in known(box))


@pytest.mark.parametrize("name", ["eye.0.weight", "eye_out.bias"])
def test_a_changed_encoder_or_projector_is_never_served_old_vectors(tmp_path, box, name):
    before = made(tmp_path, box)
    before.prepare(known(box))
    other = SmallBase()
    other.state_dict()[name].reshape(-1)[0] += 1e-3
    after = made(tmp_path, box, other)
    assert after.place != before.place
    assert not any(medium in after for medium in known(box))


def test_changed_settings_of_the_processor_are_never_served_old_vectors(tmp_path, box):
    before = made(tmp_path, box)
    before.prepare(known(box))
    assert not any(medium in made(tmp_path, box, senses=SmallSenses(scale=0.5)) for medium in known(box))


def test_other_libraries_are_never_served_old_vectors(tmp_path, box, monkeypatch):
    before = made(tmp_path, box).place
    monkeypatch.setattr(store_module, "_version", lambda name: "0.1" if name == "pillow" else "1.0")
    assert made(tmp_path, box).place != before


def test_the_decoder_and_the_other_senses_do_not_matter(tmp_path, box):
    before = made(tmp_path, box)
    other = SmallBase()
    with torch.no_grad():
        for part in (other.decoder, other.ear, other.ear_out, other.embedding):
            part.weight.add_(1)
    assert made(tmp_path, box, other).place == before.place


def test_frames_of_a_film_depend_on_how_they_are_chosen_and_pictures_do_not(tmp_path, box):
    model, senses, shown = SmallBase(), SmallSenses(), known(box)[0]
    slow, fast = (
        VectorStore(tmp_path, senses, MediaSource(box.data, box.source.limits, Frames(rate=rate)), model, "image")
        for rate in (1.0, 2.0)
    )
    frame = replace(shown, reference=f"{shown.reference}#frame=1")
    slow.files.append([(slow._name(one), torch.zeros(2, 1, 6)) for one in (frame, shown)])
    fast.files.refresh()
    assert slow.place == fast.place
    assert frame in slow
    assert frame not in fast
    assert shown in fast


def test_a_kill_between_writes_loses_only_what_was_not_written(tmp_path, box, monkeypatch):
    monkeypatch.setattr(store_module, "_BYTES", 1)  # written one by one
    whole = made(tmp_path / "whole", box)
    whole.prepare(known(box))
    monkeypatch.setattr(
        store_module, "progress", lambda items, label, total: (time.sleep(0.02) or one for one in items)
    )
    child = multiprocessing.get_context("fork").Process(target=made(tmp_path / "torn", box).prepare, args=(known(box),))
    child.start()
    index = made(tmp_path / "torn", box).place / "index.jsonl"
    while not index.is_file() or index.read_bytes().count(b"\n") < 3:
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    after = made(tmp_path / "torn", box)
    here = len(after.files)
    assert 3 <= here < len(box.blobs)
    box.opened.clear()
    after.prepare(known(box))
    assert len(box.opened) == len(box.blobs) - here
    assert all(torch.equal(after.load(one), whole.load(one)) for one in known(box))


def test_a_full_disk_is_said_and_leaves_room(tmp_path, box, monkeypatch, capsys):
    store = made(tmp_path, box)
    with monkeypatch.context() as patch:

        def full(named):
            raise DiskError(f"{store.place}: could not be written: No space left on device", "")

        patch.setattr(store.files, "append", full)
        assert not filled(store, known(box))
    assert not store.place.exists()
    assert capsys.readouterr().err.count("No space left on device") == 1
    assert filled(store, known(box))
    assert all(medium in store for medium in known(box))


def test_a_picture_that_cannot_be_decoded_is_named(tmp_path, box):
    media = known(box)
    torn = box.put(box.blobs[media[0].reference][:60])
    with pytest.raises(MediaError, match=torn) as caught:
        made(tmp_path, box).prepare([*media, Medium("image", torn, 1)])
    assert caught.value.reason == "unreadable_image"


def test_an_encoder_that_makes_another_number_of_vectors_is_refused(tmp_path, box):
    senses = SmallSenses()
    senses.prepare = lambda kind, medium: replace(SmallSenses.prepare(senses, kind, medium), slots=77)
    with pytest.raises(DataError, match="77 were foreseen"):
        made(tmp_path, box, senses=senses).prepare(known(box))


def test_what_is_tuned_is_seen_by_kind():
    model, senses = SmallBase(), SmallSenses()
    model.decoder.requires_grad_(True)
    assert not tuned(senses, model, "image")
    model.eye_out.bias.requires_grad_(True)
    assert tuned(senses, model, "image")
    assert not tuned(senses, model, "audio")


def test_work_ahead_keeps_its_order_and_does_not_run_away():
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        time.sleep(0.01 if number % 2 else 0.0)
        return number * number

    stream = ahead(work, range(40))
    assert [next(stream) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert len(begun) < 12
    assert list(stream) == [number * number for number in range(5, 40)]


def test_an_error_ahead_is_raised_in_its_turn_and_ends_the_threads():
    def work(number: int) -> int:
        if number == 3:
            raise MediaError("unreadable_image", "three")
        return number

    stream = ahead(work, range(10))
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(MediaError, match="three"):
        next(stream)
