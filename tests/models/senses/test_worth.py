"""A store is kept where it is right and pays, the reason is told, and a resumed run does as it did."""

from __future__ import annotations

import re
import time
from dataclasses import replace

import pytest
import torch

from luthier.errors import DiskError
from luthier.files import read_json
from luthier.models.senses import store as store_module
from luthier.models.senses import worth
from luthier.models.senses.supply import Draw, Supply
from luthier.models.senses.worth import Cost, Look, measure, stock
from luthier.recipe_data import Augmentation
from support.mediabox import MediaBox, SmallBase, SmallSenses
from support.sightings import picture

SLOW = 0.02


class SlowSenses(SmallSenses):
    """An encoder that takes its time."""

    def encode(self, model, prepared):
        time.sleep(SLOW * len(prepared))
        return super().encode(model, prepared)


@pytest.fixture
def box():
    found = MediaBox()
    for number in range(6):
        found.picture(picture(8 + 5 * number, 16))
    return found


def stocked(box, folder, wish="auto", looks=None, model=None, senses=None, augmentation=None, stage="main") -> Supply:
    found = Supply(senses or SlowSenses(), box.source, augmentation or Augmentation())
    looks = [Look(box.media(found.senses), 5, training=True)] if looks is None else looks
    stock(found, model or SmallBase(), folder, looks, wish, stage)
    return found


def told(capsys) -> str:
    return capsys.readouterr().err


def test_a_slow_encoder_over_many_epochs_is_stored(tmp_path, box, capsys):
    found = stocked(box, tmp_path)
    assert all(medium in found.stores["image"] for medium in box.media(found.senses))
    line = next(line for line in told(capsys).splitlines() if line.startswith("image vectors are kept"))
    live, stored, even, looks = map(float, re.findall(r"[\d.]+(?:e-\d+)?(?= s| looks|[;,])", line)[:4])
    assert live >= SLOW
    assert stored < live / 2
    assert 0.5 < even < 4
    assert looks == 5


def test_one_look_is_not_worth_it(tmp_path, box, capsys):
    found = stocked(box, tmp_path, looks=[Look(box.media(SmallSenses()), 1)])
    assert found.stores == {}
    assert "image vectors are not kept" in told(capsys)
    assert not list(tmp_path.glob("image-*/*.raw"))


def test_looks_of_all_kinds_are_added_up(tmp_path, box):
    media = box.media(SmallSenses())
    looks = [Look(media[:3], 2, training=True), Look(media, 2), Look(media[3:], 1.5)]
    counts, changed = worth._counts(Supply(SmallSenses(), box.source), "image", looks)
    assert [counts[medium] for medium in media] == [4, 4, 4, 3.5, 3.5, 3.5]
    assert not changed


@pytest.mark.parametrize(("wish", "looks", "kept"), [("on", 1, True), ("off", 50, False)])
def test_what_is_wished_for_is_done_and_not_timed(tmp_path, box, capsys, monkeypatch, wish, looks, kept):
    monkeypatch.setattr(worth, "measure", lambda *_: pytest.fail("timed"))
    found = stocked(box, tmp_path, wish, [Look(box.media(SmallSenses()), looks)])
    assert bool(found.stores) == kept
    assert f"train.feature_store is {wish}" in told(capsys)


@pytest.mark.parametrize("wish", ["auto", "on"])
def test_what_is_tuned_is_never_stored(tmp_path, box, capsys, wish):
    model = SmallBase()
    model.eye_out.weight.requires_grad_(True)
    assert stocked(box, tmp_path, wish, model=model).stores == {}
    assert "tuned" in told(capsys)


@pytest.mark.parametrize("wish", ["auto", "on"])
def test_augmented_rows_are_not_stored_and_rows_that_are_scored_may_be(tmp_path, box, capsys, wish):
    cut, senses = Augmentation(crop=0.2), SlowSenses()
    media = box.media(senses)
    assert stocked(box, tmp_path / "a", wish, augmentation=cut).stores == {}
    assert "augmented" in told(capsys)
    looks = [Look(media[:4], 5, training=True), Look(media[4:], 5)]
    found = stocked(box, tmp_path / "b", wish, looks, augmentation=cut)
    store = found.stores["image"]
    assert [medium in store for medium in media] == [False] * 4 + [True] * 2
    assert "training rows are augmented" in told(capsys)
    training = found.batch(media[4:], [Draw(0, 0, "r", place) for place in range(2)])
    assert training.stored_KMD is None
    # Sound is not touched by what changes pictures alone.
    box.blobs.clear()
    box.sound(0.3)
    found = stocked(box, tmp_path / "c", wish, [Look(box.media(senses, "audio"), 5, True)], augmentation=cut)
    assert "audio" in found.stores


def test_a_resumed_run_does_as_it_did_whatever_the_clock_says_now(tmp_path, box, monkeypatch):
    once = [Look(box.media(SmallSenses()), 1)]
    assert stocked(box, tmp_path, looks=once).stores == {}
    assert stocked(box, tmp_path, stage="second").stores
    monkeypatch.setattr(worth, "measure", lambda *_: pytest.fail("timed again"))
    assert stocked(box, tmp_path).stores == {}
    assert stocked(box, tmp_path, stage="second", looks=once).stores
    # Another wish is another decision.
    assert stocked(box, tmp_path, "on").stores
    assert stocked(box, tmp_path, "off").stores == {}


def test_decisions_are_written_down_with_their_figures(tmp_path, box):
    stocked(box, tmp_path)
    found = read_json(tmp_path / "decision.json")["main/image"]
    assert found["use"] is True
    assert found["wish"] == "auto"
    assert found["cost"]["live"] > found["cost"]["reading"] > 0


@pytest.mark.parametrize("wish", ["auto", "on"])
def test_a_disk_that_fills_up_is_said_once_and_training_goes_on_live(tmp_path, box, capsys, monkeypatch, wish):
    plain = store_module.VectorFiles.append

    def full(self, named):
        if ".tmp-" in str(self.folder):  # the timing finds room
            return plain(self, named)
        raise DiskError(f"{self.folder}: could not be written: No space left on device", "")

    with monkeypatch.context() as patch:
        patch.setattr(store_module.VectorFiles, "append", full)
        assert stocked(box, tmp_path, wish).stores == {}
    assert told(capsys).count("No space left on device") == 1
    # With room again, a resumed run still does as it did.
    assert stocked(box, tmp_path, wish).stores == {}
    assert "the disk is full" in told(capsys)


def test_a_disk_without_room_is_not_filled(tmp_path, box, capsys, monkeypatch):
    monkeypatch.setattr(worth, "free_bytes", lambda folder: 2**30 + 100)
    assert stocked(box, tmp_path).stores == {}
    assert "MB are free" in told(capsys)


@pytest.mark.parametrize(
    ("missing", "looks", "pays"), [(10, 10, False), (10, 20, True), (10, 11, False), (0, 1, True), (1, 2, True)]
)
def test_it_pays_where_making_and_reading_take_less_than_making_each_time(missing, looks, pays):
    cost = Cost(live=1.0, making=1.1, reading=0.01, size=1.0)
    assert cost.pays(missing, looks) == pays
    assert cost.break_even == pytest.approx(1.1 / 0.99)


def test_reading_that_is_slower_than_making_never_pays():
    cost = Cost(live=0.001, making=0.002, reading=0.001, size=1.0)
    assert cost.break_even == float("inf")
    assert not cost.pays(1, 10**9)


def test_timing_finds_the_encoder_and_leaves_nothing_behind(tmp_path, box):
    senses = SlowSenses()
    store = store_module.VectorStore(tmp_path, senses, box.source, SmallBase(), "image")
    media = box.media(senses)
    for few in (media[:1], media):
        cost = measure(store, few)
        assert cost.live >= SLOW
        assert cost.making >= SLOW
        assert cost.reading < cost.live / 2
    assert cost.size == pytest.approx(sum(2 * one.slots * 6 * 4 for one in media[1:5]) / 4)
    assert list(tmp_path.iterdir()) == []


def test_a_very_slow_encoder_is_timed_on_one_medium(tmp_path, box, monkeypatch):
    monkeypatch.setattr(worth, "_SECONDS", 0.5 * SLOW)
    calls = []
    senses = SlowSenses()
    plain = senses.encode
    senses.encode = lambda model, prepared: calls.append(len(prepared)) or plain(model, prepared)
    measure(store_module.VectorStore(tmp_path, senses, box.source, SmallBase(), "image"), box.media(senses))
    assert calls == [1, 1, 1]


def test_stored_vectors_serve_what_was_decided(tmp_path, box):
    found, live = stocked(box, tmp_path), Supply(SlowSenses(), box.source)
    model, media = SmallBase(), box.media(live.senses)
    batch = found.batch(media)
    assert batch.prepared == ()
    assert torch.equal(batch.vectors(found.senses, model), live.batch(media).vectors(live.senses, model))
    assert replace(found, stores={}).batch(media).stored_KMD is None
