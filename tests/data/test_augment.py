"""What a training row's medium becomes follows from (seed, epoch, row, place) alone, and loses nothing it must keep."""

from __future__ import annotations

import hashlib
import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from luthier.data.augment import Draw, augment, augment_film, augment_picture, augment_sound, changes, crop_box
from luthier.data.mediasource import Film
from luthier.recipe_data import Augmentation

RATE = 16_000
ALL = Augmentation(crop=0.3, flip=True, colour=0.2, noise=0.05, speed=0.1, gain=6.0)
DRAWS = [Draw(seed, epoch, row, place) for seed in (0, 7) for epoch in (0, 1) for row in ("a", "b") for place in (0, 1)]
NONE = Augmentation()


def picture(width: int = 61, height: int = 43, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def tone(hertz: float = 1000.0, seconds: float = 1.0, peak: float = 0.5) -> np.ndarray:
    time = np.arange(round(seconds * RATE)) / RATE
    return (peak * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def film(frames: int = 3) -> Film:
    sound = tone(seconds=0.5)
    same = picture()
    return Film((same,) * frames, tuple(float(n) for n in range(frames)), float(frames), sound)


def reference_generator(draw: Draw) -> np.random.Generator:
    """The documented seed, written a second time."""
    text = json.dumps([draw.seed, draw.epoch, draw.row, draw.place], separators=(",", ":"), ensure_ascii=False)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(int(digest, 16))))


def peak_hertz(samples: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 2**18))
    return float(spectrum.argmax()) * RATE / 2**18


def test_the_same_draw_gives_the_same_bytes_in_any_order_and_thread():
    def made(draw: Draw) -> tuple[bytes, bytes]:
        return augment("image", picture(), ALL, draw).tobytes(), augment("audio", tone(), ALL, draw).tobytes()

    expected = {draw: made(draw) for draw in DRAWS}
    with ThreadPoolExecutor(4) as pool:
        backwards = list(pool.map(made, DRAWS[::-1]))
    assert backwards == [expected[draw] for draw in DRAWS[::-1]]
    for number in (0, 1):
        assert len({found[number] for found in expected.values()}) == len(DRAWS)


def test_nothing_else_that_is_drawn_at_random_moves_or_is_moved():
    before = augment_picture(picture(), ALL, DRAWS[0]).tobytes()
    np.random.seed(3)
    state = np.random.get_state()[1].tolist()
    assert augment_picture(picture(), ALL, DRAWS[0]).tobytes() == before
    assert np.random.get_state()[1].tolist() == state


def test_draws_are_those_of_a_second_reading_of_the_rule():
    for draw in DRAWS:
        assert draw.generator().random(9).tolist() == reference_generator(draw).random(9).tolist()


@pytest.mark.parametrize("kind", ["image", "audio", "video"])
def test_what_is_not_changed_is_the_same_object(kind):
    medium = {"image": picture(), "audio": tone(), "video": film()}[kind]
    found = augment(kind, medium, NONE, DRAWS[0])
    if kind == "video":
        assert found.sound is medium.sound
        assert all(a is b for a, b in zip(found.frames, medium.frames, strict=True))
    else:
        assert found is medium
    assert not changes(kind, NONE)


def test_settings_of_sound_leave_pictures_alone_and_those_of_pictures_sound():
    sound_only, sight_only = Augmentation(speed=0.1, gain=3.0), Augmentation(crop=0.1, flip=True, colour=0.1)
    shown, heard = picture(), tone()
    assert augment_picture(shown, sound_only, DRAWS[0]) is shown
    assert augment_sound(heard, sight_only, DRAWS[0]) is heard
    assert changes("audio", sound_only)
    assert not changes("image", sound_only)
    assert changes("image", sight_only)
    assert not changes("audio", sight_only)
    assert changes("video", sound_only)
    assert changes("video", sight_only)


@pytest.mark.parametrize("crop", [0.01, 0.3, 0.9, 1.0])
def test_crops_are_those_of_a_second_implementation(crop):
    for draw in DRAWS:
        shown = picture()
        found = augment_picture(shown, Augmentation(crop=crop), draw)
        share, left, top = reference_generator(draw).random(3)
        side = math.sqrt(1 - crop * share)
        width, height = (max(1, min(whole, math.ceil(whole * side))) for whole in shown.size)
        x, y = math.floor(left * (shown.width - width + 1)), math.floor(top * (shown.height - height + 1))
        part = shown.crop((x, y, x + width, y + height)).resize(shown.size, Image.Resampling.BICUBIC)
        assert found.size == shown.size
        np.testing.assert_array_equal(np.asarray(found), np.asarray(part))


@settings(max_examples=200, deadline=None)
@given(
    size=st.tuples(st.integers(1, 9000), st.integers(1, 9000)),
    share=st.floats(0, 1),
    left=st.floats(0, 1, exclude_max=True),
    top=st.floats(0, 1, exclude_max=True),
)
def test_a_box_is_never_empty_nor_outside_and_keeps_its_share(size, share, left, top):
    x, y, right, bottom = crop_box(size, share, left, top)
    assert 0 <= x < right <= size[0]
    assert 0 <= y < bottom <= size[1]
    assert (right - x) * (bottom - y) >= share * size[0] * size[1] * (1 - 1e-9)
    # The shape is that of the whole, to a pixel.
    assert abs((right - x) / size[0] - (bottom - y) / size[1]) <= 1 / min(size)


def test_a_flip_is_the_exact_mirror_of_about_half_of_the_pictures():
    shown = picture()
    mirror = np.asarray(shown)[:, ::-1]
    flipped = 0
    for row in range(400):
        found = np.asarray(augment_picture(shown, Augmentation(flip=True), Draw(0, 0, str(row), 0)))
        flipped += bool((found == mirror).all())
        assert (found == mirror).all() or (found == np.asarray(shown)).all()
    assert 150 < flipped < 250


def test_a_setting_that_is_switched_on_leaves_the_crop_as_it_was():
    cut = Augmentation(crop=0.5)
    for draw in DRAWS:
        alone, mirrored = (np.asarray(augment_picture(picture(), one, draw)) for one in (cut, replace(cut, flip=True)))
        assert (alone == mirrored).all() or (alone[:, ::-1] == mirrored).all()


def test_brightness_changes_by_at_most_its_share():
    grey = Image.new("RGB", (8, 8), (100, 100, 100))
    levels = [
        np.asarray(augment_picture(grey, Augmentation(colour=0.2), Draw(0, 0, str(row), 0))) for row in range(200)
    ]
    means = [float(level.mean()) for level in levels]
    assert 79 <= min(means) < 85
    assert 115 < max(means) <= 121
    assert all(np.ptp(level) == 0 for level in levels)  # grey stays grey


@pytest.mark.parametrize("size", [(64, 64), (3000, 700)])
def test_noise_of_a_picture_has_its_deviation_and_stays_in_range(size):
    grey = Image.new("RGB", size, (128, 128, 128))
    found = np.asarray(augment_picture(grey, Augmentation(noise=0.05), DRAWS[0])).astype(float) - 128
    assert abs(found.std() - 0.05 * 255) < 0.05 * 255 * (0.05 if size[0] == 64 else 0.01)
    assert abs(found.mean()) < 0.5
    white = np.asarray(augment_picture(Image.new("RGB", (64, 64), "white"), Augmentation(noise=0.5), DRAWS[0]))
    assert white.dtype == np.uint8
    assert white.max() == 255
    assert (white == 255).mean() > 0.4


@pytest.mark.parametrize("draw", DRAWS[:8])
def test_a_tone_played_at_another_speed_is_as_much_higher_and_as_much_shorter(draw):
    heard = tone(seconds=2.0)
    speed = 1 + 0.1 * (2 * reference_generator(draw).random() - 1)
    found = augment_sound(heard, Augmentation(speed=0.1), draw, room=2 * len(heard))
    assert len(found) == max(len(heard), round(len(heard) / speed)) or abs(len(found) - len(heard) / speed) <= 2
    spoken = np.flatnonzero(np.abs(found) > 1e-3)
    assert abs(spoken[-1] - len(heard) / speed) < 0.01 * RATE
    assert peak_hertz(found[: spoken[-1]]) == pytest.approx(1000 * speed, rel=2e-3)
    assert abs(np.abs(found[2000:-6000]).max() - 0.5) < 0.01


@pytest.mark.parametrize("room", [0, RATE, RATE + 1, RATE + 437, RATE + 1600, 3 * RATE])
def test_a_recording_never_outgrows_its_room_and_loses_nothing_of_its_end(room):
    for row in range(40):
        heard = np.zeros(RATE, dtype=np.float32)
        heard[-800:] = tone(seconds=0.05)  # the last word
        found = augment_sound(heard, Augmentation(speed=0.2), Draw(0, 0, str(row), 0), room)
        assert RATE <= len(found) <= max(room, RATE)
        assert float(np.square(found).sum()) > 0.75 * float(np.square(heard).sum())


def test_without_room_slow_recordings_keep_their_speed():
    heard = tone()
    speeds = {row: 1 + 0.2 * (2 * reference_generator(Draw(0, 0, row, 0)).random() - 1) for row in map(str, range(30))}
    for row, speed in speeds.items():
        found = augment_sound(heard, Augmentation(speed=0.2), Draw(0, 0, row, 0))
        assert len(found) == len(heard)
        if speed < 1:
            np.testing.assert_allclose(found, heard, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    peak=st.floats(0, 2),
    noise=st.floats(0, 1),
    gain=st.floats(0, 40),
    row=st.text(max_size=5),
    length=st.integers(1, 400),
)
def test_what_was_within_one_stays_within_one(peak, noise, gain, row, length):
    heard = (np.linspace(-1, 1, length) * peak).astype(np.float32)
    found = augment_sound(heard, Augmentation(noise=noise, gain=gain), Draw(0, 0, row, 0))
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    assert np.abs(found).max() <= max(1.0, np.abs(heard).max())


def test_a_gain_multiplies_by_its_decibels_and_noise_follows_the_level():
    heard = tone(peak=0.01)
    for draw in DRAWS:
        gain = 6.0 * (2 * reference_generator(draw).random(2)[1] - 1)
        found = augment_sound(heard, Augmentation(gain=6.0), draw)
        np.testing.assert_allclose(found, heard * 10 ** (gain / 20), rtol=1e-5, atol=1e-9)
        added = augment_sound(heard, Augmentation(noise=0.1), draw) - heard
        assert added.std() == pytest.approx(0.1 * 0.01 / math.sqrt(2), rel=0.05)


def test_all_frames_of_a_film_are_changed_in_one_way_and_its_sound_keeps_its_speed():
    before = film()
    found = augment_film(before, ALL, DRAWS[0])
    assert len({frame.tobytes() for frame in found.frames}) == 1  # they were equal
    assert found.frames[0].tobytes() == augment_picture(before.frames[0], ALL, DRAWS[0]).tobytes()
    assert found.seconds == before.seconds
    assert found.duration == before.duration
    quiet = augment_film(before, Augmentation(speed=0.2), DRAWS[0])
    np.testing.assert_array_equal(quiet.sound, before.sound)
    assert found.sound is not None
    assert not np.array_equal(found.sound, before.sound)
