"""Uploads: what comes out is what was sent; names are only shown; processes are recycled and closed."""

from __future__ import annotations

import io
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Timer

import numpy as np
import pytest
from PIL import Image

from luthier.data.media import decode_audio, to_mono_16k
from luthier.errors import MediaError, RequestError
from luthier.serve import uploads as module
from luthier.serve.settings import Limits
from luthier.serve.uploads import REASONS, Uploads, shown
from luthier.serve.waiting import Busy
from support.sounds import RATE, written


@pytest.fixture(scope="module")
def uploads() -> Iterator[Uploads]:
    made = Uploads(Limits())
    yield made
    made.close()


def pixels(height: int = 30, width: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


def png(array: np.ndarray, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG", **options)
    return stream.getvalue()


def clip(seconds: float = 1.0, rate: int = RATE) -> bytes:
    wave = np.random.default_rng(0).normal(0, 0.1, (round(seconds * rate), 2))
    return written(wave.astype(np.float32), rate, "WAV")


def test_a_recording_is_what_the_data_floor_makes_of_it(uploads: Uploads) -> None:
    for rate in (8_000, 44_100, 48_000, 192_000):
        data = clip(rate=rate)
        sound = uploads.sound(data, "a.wav")
        assert np.array_equal(sound.wave_L, to_mono_16k(*decode_audio(data)))
        assert (sound.rate, sound.channels, sound.format) == (rate, 2, "wav")
        assert sound.seconds == len(sound.wave_L) / RATE


def test_silence_is_let_through(uploads: Uploads) -> None:
    assert not uploads.sound(written(np.zeros(RATE), RATE, "WAV"), "a.wav").wave_L.any()


def test_a_picture_is_upright_in_rgb(uploads: Uploads) -> None:
    array = pixels()
    assert np.array_equal(uploads.picture(png(array), "a.png"), array)
    exif = Image.Exif()
    exif[274] = 6  # to be turned clockwise
    turned = uploads.picture(png(array, exif=exif), "a.png")
    assert turned.mode == "RGB"
    assert np.array_equal(turned, np.rot90(array, -1))


def test_what_is_too_large_is_refused_before_it_is_decoded() -> None:
    made = Uploads(Limits(audio_bytes=100, picture_bytes=100), workers=0)  # nobody is there to decode
    for take in (made.sound, made.picture):
        with pytest.raises(MediaError) as caught:
            take(bytes(101), "x")
        assert caught.value.reason == "too_large"


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("a.wav", "a.wav"),
        ("", "the file"),
        ("../../etc/passwd", "../../etc/passwd"),
        ("a\x00b\n\x1b[31m.wav", "a·b··[31m.wav"),
        ("\u202egnp.wav\ud800", "·gnp.wav·"),
        ("日本語.wav", "日本語.wav"),
        ("x" * 10_000 + ".wav", "x" * 47 + "…" + "x" * 8 + ".wav"),
    ],
)
def test_names_are_shown_without_what_does_not_print_and_shortened(name: str, seen: str, uploads: Uploads) -> None:
    assert shown(name) == seen
    with pytest.raises(MediaError) as caught:
        uploads.sound(b"<html>", name)
    assert caught.value.detail.startswith(f"“{seen}” cannot be read as a recording: ")
    assert str(caught.value).isprintable() or "\n" in str(caught.value)


def test_a_decoder_that_hangs_is_ended_and_the_next_upload_gets_another(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Uploads(Limits(), workers=1)
    made.sound(clip(), "a.wav")
    (child,) = made._children
    os.kill(child.pid, signal.SIGSTOP)
    monkeypatch.setattr(module, "DECODING_SECONDS", 0.5)
    with pytest.raises(MediaError) as caught:
        made.sound(clip(), "a.wav")
    assert (caught.value.reason, caught.value.detail) == (
        "too_slow",
        "“a.wav” took too long to decode: the most is 0.5 s.",
    )
    monkeypatch.undo()
    assert made.sound(clip(), "a.wav").seconds == 1
    assert len(made._children) == 1
    made.close()


def test_a_decoder_that_dies_is_replaced(uploads: Uploads) -> None:
    uploads.sound(clip(), "a.wav")
    for child in list(uploads._children):
        os.kill(child.pid, signal.SIGSTOP)
        Timer(0.3, child.kill).start()
    with pytest.raises(MediaError) as caught:
        uploads.sound(clip(), "a.wav")
    assert caught.value.reason == "broke_decoder"
    assert uploads.sound(clip(), "a.wav").seconds == 1


def test_a_worn_decoder_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "USES", 2)
    made = Uploads(Limits(), workers=1)
    seen = set()
    for _ in range(5):
        made.sound(clip(0.2), "a.wav")
        seen |= {child.pid for child in made._children}
    assert len(seen) == 3
    assert len(made._children) == 1
    made.close()


def test_many_at_once_get_their_own_back(uploads: Uploads) -> None:
    sizes = [(10 + number, 20 + number) for number in range(24)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda size: uploads.picture(png(pixels(*size)), "a.png").size, sizes))
    assert found == [(width, height) for height, width in sizes]
    assert len(uploads._children) <= module.WORKERS


def test_where_all_decoders_are_at_work_the_client_is_told_when_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING_SECONDS", 0.1)
    with pytest.raises(Busy, match="all decoders are at work"):
        Uploads(Limits(), workers=0).sound(clip(), "a.wav")


def test_closing_ends_the_processes_and_refuses_what_comes_after() -> None:
    made = Uploads(Limits())
    made.sound(clip(), "a.wav")
    children = list(made._children)
    made.close()
    made.close()
    assert not any(child.alive for child in children)
    with pytest.raises(RequestError, match="the server is stopping"):
        made.sound(clip(), "a.wav")
    assert not any(child.alive for child in made._children)


@pytest.mark.parametrize("answer", [{}, {"numbers": [1]}, {"numbers": ["a", 2]}, {"numbers": [-4, -8]}, {"refused": 3}])
def test_an_answer_that_makes_no_sense_is_a_refusal(answer: dict[str, object]) -> None:
    made = Uploads(Limits())
    made._ready = lambda child: type("Fake", (), {"ask": lambda *_: (answer, bytes(7))})()  # type: ignore[method-assign]
    for take in (made.sound, made.picture):
        with pytest.raises(MediaError) as caught:
            take(b"x", "a")
        assert caught.value.reason == "broke_decoder"


def test_a_picture_whose_size_does_not_fit_its_bytes_is_a_refusal() -> None:
    made = Uploads(Limits())
    answer = {"numbers": [60_000, 60_000]}
    made._ready = lambda child: type("Fake", (), {"ask": lambda *_: (answer, bytes(9))})()  # type: ignore[method-assign]
    with pytest.raises(MediaError):
        made.picture(b"x", "a")


def test_a_warm_decoder_costs_less_than_50_ms_beyond_decoding(uploads: Uploads) -> None:
    data = clip(10, 48_000)

    def fastest(work: object) -> float:
        times = []
        for _ in range(7):
            began = time.perf_counter()
            work()  # type: ignore[operator]
            times.append(time.perf_counter() - began)
        return min(times)

    there = fastest(lambda: uploads.sound(data, "a.wav"))
    here = fastest(lambda: to_mono_16k(*decode_audio(data)))
    print(f"through the child {1000 * there:.1f} ms, here {1000 * here:.1f} ms")
    assert there - here < 0.05


def test_every_reason_is_said_in_words() -> None:
    from luthier.data import media, pictures

    unused = {"silent_audio"}  # silence is let through
    assert (set(media.REASONS) | set(pictures.REASONS)) - unused <= set(REASONS)
