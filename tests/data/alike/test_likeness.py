"""Pictures and sounds in other files are found again; other pictures and other speech are not."""

from __future__ import annotations

import io
from itertools import combinations

import numpy as np
import pytest
import soundfile
import soxr
from PIL import Image, ImageDraw

from luthier.data.alike.likeness import PicturePrint, picture_print, same_pictures, same_sounds, sound_print
from luthier.data.media import load_audio
from luthier.data.voice import Delivery, Speaker, render
from luthier.recipe_data import Limits

WORDS = (
    "the small boat left the harbour before the sun came up",
    "we counted every lamp along the road to the old bridge",
    "please send the letter to my brother in the other town",
)


def drawing(seed: int, size: int = 320) -> Image.Image:
    """Coloured shapes over a soft gradient."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 256, (2, 2, 3)).astype(np.uint8)
    picture = Image.fromarray(corners).resize((size, size), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for _ in range(9):
        x, y, w, h = rng.integers(0, 3 * size // 4, 4).tolist()
        draw.ellipse((x, y, x + w // 2 + 20, y + h // 2 + 20), fill=tuple(rng.integers(0, 256, 3).tolist()))
    return picture


def through(picture: Image.Image, form: str, **options: int) -> Image.Image:
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return Image.open(io.BytesIO(stream.getvalue())).convert("RGB")


def merged(found: object) -> list[tuple[int, int]]:
    return [(merge.index, merge.into) for merge in found.merges]  # type: ignore[attr-defined]


def test_a_picture_is_found_again_in_other_coding_and_size() -> None:
    first = drawing(1)
    copies = [through(first, "JPEG", quality=60), through(first, "WEBP", quality=70), first.resize((200, 200))]
    found = same_pictures([picture_print(item) for item in [first, *copies, drawing(2)]], 4)
    assert merged(found) == [(1, 0), (2, 0), (3, 0)]
    assert all(merge.how == "image" and merge.similarity >= 60 / 64 for merge in found.merges)


def test_different_pictures_are_kept() -> None:
    assert same_pictures([picture_print(drawing(seed, 128)) for seed in range(80)], 6).merges == []


def test_plain_pictures_of_other_colours_are_kept_and_of_the_same_colour_are_one() -> None:
    plain = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue", "white", "#fe0000")]
    assert merged(same_pictures([picture_print(item) for item in plain], 4)) == [(3, 0)]


def test_only_pictures_with_the_same_words_are_compared_where_words_are_given() -> None:
    prints = [picture_print(drawing(3))] * 3
    assert merged(same_pictures(prints, 4, within=["what is it?", "how many?", "what is it?"])) == [(2, 0)]


@pytest.mark.parametrize("distance", [0, 3, 8])
def test_hashes_within_the_distance_are_merged_as_all_pairs_say(distance: int) -> None:
    rng = np.random.default_rng(distance)
    small = np.zeros((16, 16, 3), dtype=np.float32)
    small[::2] = 200.0
    base = [int(value) for value in rng.integers(0, 1 << 62, 40)]
    bits = [
        value ^ sum(1 << int(b) for b in rng.choice(62, int(rng.integers(0, 10)), replace=False)) for value in base * 20
    ]
    found = dict(merged(same_pictures([PicturePrint(value, small) for value in bits], distance)))
    kept: list[int] = []
    for row, value in enumerate(bits):
        first = next((other for other in kept if (bits[other] ^ value).bit_count() <= distance), None)
        assert found.get(row) == first
        if first is None:
            kept.append(row)


def speech(text: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return render(text, Delivery(), Speaker.draw(rng), rng)


def as_file(samples: np.ndarray, form: str, rate: int = 16_000, channels: int = 1) -> np.ndarray:
    """Written to a file of this kind and read back as the engine reads it."""
    stream = io.BytesIO()
    heard = soxr.resample(samples, 16_000, rate) if rate != 16_000 else samples
    soundfile.write(stream, np.stack([heard] * channels, axis=1), rate, format=form)
    return load_audio(stream.getvalue(), Limits())


VARIANTS = {
    "flac": lambda x: as_file(x, "FLAC"),
    "ogg": lambda x: as_file(x, "OGG"),
    "mp3": lambda x: as_file(x, "MP3"),
    "8 kHz": lambda x: as_file(x, "WAV", 8_000),
    "44.1 kHz in stereo": lambda x: as_file(x, "OGG", 44_100, 2),
    "later": lambda x: as_file(np.concatenate([np.zeros(1_700, np.float32), x]), "WAV"),
    "earlier": lambda x: as_file(x[900:], "WAV"),
    "quieter": lambda x: as_file(0.2 * x, "WAV"),
    "noisier": lambda x: as_file(x + np.random.default_rng(0).normal(0, 0.003, len(x)).astype(np.float32), "WAV"),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_recording_is_found_again_in_other_coding_time_and_loudness(name: str) -> None:
    first = [speech(text, n) for n, text in enumerate(WORDS)]
    prints = [sound_print(item) for item in [*first, *map(VARIANTS[name], first)]]
    found = same_sounds(prints, 0.2)
    assert merged(found) == [(3, 0), (4, 1), (5, 2)]
    assert all(merge.how == "audio" and merge.similarity >= 0.8 for merge in found.merges)


def test_the_same_words_spoken_by_others_or_again_are_kept() -> None:
    speakers = [Speaker(variant, pitch) for variant in ("m1", "m3", "m7", "f1", "f2", "f4") for pitch in (0.3, 0.7)]
    others = [render(WORDS[0], Delivery(), who, np.random.default_rng(n)) for n, who in enumerate(speakers)]
    again = [render(WORDS[1], Delivery(rate=r), Speaker(), np.random.default_rng(1)) for r in (0.0, 0.2, 0.5)]
    assert same_sounds([sound_print(item) for item in [*others, *again]], 0.2).merges == []


def test_a_part_of_a_recording_is_not_the_recording() -> None:
    whole = speech(WORDS[2], 5)
    assert same_sounds([sound_print(whole), sound_print(whole[: len(whole) // 2])], 0.2).merges == []


def test_more_copies_than_frames_are_compared_become_one() -> None:
    first = speech(WORDS[0], 6)
    prints = [sound_print(np.roll(first, 37 * n)) for n in range(60)]
    assert merged(same_sounds(prints, 0.3)) == [(n, 0) for n in range(1, 60)]


def test_silence_and_what_is_passed_over_are_like_nothing() -> None:
    prints = [sound_print(np.zeros(8_000, np.float32)), sound_print(np.zeros(8_000, np.float32)), None]
    assert same_sounds(prints, 0.2).merges == []
    assert same_sounds([None, None], 0.2).merges == same_pictures([None, None], 4).merges == []


def test_a_shortest_recording_has_a_print() -> None:
    assert len(sound_print(np.ones(1_600, np.float32))) > 0


def test_only_recordings_with_the_same_words_are_compared_where_words_are_given() -> None:
    prints = [sound_print(speech(WORDS[0], 7))] * 2
    assert [merged(same_sounds(prints, 0.2, within=words)) for words in (["a", "b"], ["a", "a"])] == [[], [(1, 0)]]


def test_unlike_recordings_differ_in_near_half_of_their_bits() -> None:
    prints = [sound_print(speech(text, n)) for n, text in enumerate(WORDS)]
    for a, b in combinations(prints, 2):
        length = min(len(a), len(b))
        assert 0.4 < np.bitwise_count(a[:length] ^ b[:length]).mean() / 32 < 0.6
