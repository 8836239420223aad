"""Decoding: the pitch and length of a tone survive every rate, channel count and container; bad bytes are named."""

import io

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.media import REASONS, audio_suffix, decode_audio, load_audio, to_mono_16k
from luthier.errors import MediaError
from luthier.recipe_data import Limits

RATES = (8000, 11025, 16000, 22050, 44100, 48000)


def tone(rate: int, seconds: float = 1.0, channels: int = 1, level: float = 0.3) -> np.ndarray:
    wave = level * np.sin(2 * np.pi * 1000 * np.arange(round(rate * seconds)) / rate)
    return np.repeat(wave[:, None], channels, axis=1).astype(np.float32)


def encode(samples: np.ndarray, rate: int, kind: str = "WAV", subtype: str | None = None) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=kind, subtype=subtype)
    return stream.getvalue()


def mp4(samples: np.ndarray, rate: int) -> bytes:
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as container:
        track = container.add_stream("aac", rate=rate)
        track.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), format="fltp", layout="mono")
        frame.sample_rate = rate
        for packet in [*track.encode(frame), *track.encode(None)]:
            container.mux(packet)
    return stream.getvalue()


def peak_hertz(audio: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio)), n=16 * len(audio)))
    return float(np.argmax(spectrum)) * 16000 / (16 * len(audio))


def sound_or_reason(data: bytes) -> np.ndarray | str:
    try:
        return load_audio(data, Limits())
    except MediaError as error:
        return error.reason


def reason_of(data: bytes, limits: Limits | None = None) -> str:
    with pytest.raises(MediaError) as caught:
        load_audio(data, limits or Limits())
    return caught.value.reason


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize(
    ("kind", "subtype"), [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("OGG", "VORBIS")]
)
def test_a_tone_keeps_its_pitch_and_length(rate: int, channels: int, kind: str, subtype: str) -> None:
    audio = load_audio(encode(tone(rate, channels=channels), rate, kind, subtype), Limits())
    assert audio.dtype == np.float32
    assert audio.ndim == 1
    assert abs(peak_hertz(audio) - 1000) < 2
    assert abs(len(audio) / 16000 - 1.0) < 0.001
    assert abs(np.sqrt(np.mean(audio[800:-800] ** 2)) - 0.3 / np.sqrt(2)) < 0.01


@pytest.mark.parametrize("rate", [16000, 44100])
def test_mp4_goes_through_ffmpeg(rate: int) -> None:
    data = mp4(tone(rate, 2.0), rate)
    assert audio_suffix(data) == ".m4a"
    audio = load_audio(data, Limits())
    assert abs(peak_hertz(audio) - 1000) < 2
    assert abs(len(audio) / 16000 - 2.0) < 0.15  # AAC pads the ends by up to three frames


def test_decode_gives_samples_by_channels_and_the_true_rate() -> None:
    samples, rate = decode_audio(encode(tone(8000, channels=3), 8000))
    assert samples.shape == (8000, 3)
    assert rate == 8000


def test_channels_are_averaged() -> None:
    left_only = np.stack([tone(16000)[:, 0], np.zeros(16000, np.float32)], axis=1)
    assert np.allclose(to_mono_16k(left_only, 16000), tone(16000)[:, 0] / 2, atol=1e-7)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty_audio"),
        (b"not audio at all, but some text", "unreadable_audio"),
        (b"#EXTM3U\nhttp://127.0.0.1:9/a.ts\n", "unreadable_audio"),
        (encode(np.zeros((0, 1), np.float32), 16000), "empty_audio"),
        (encode(np.zeros((16000, 1), np.float32), 16000), "silent_audio"),
        (encode(tone(16000, level=5e-5), 16000, subtype="FLOAT"), "silent_audio"),
        (encode(tone(16000, 0.05), 16000), "too_short"),
        (encode(tone(8000, 61.0), 8000), "too_long"),
    ],
    ids=range(8),
)
def test_reasons(data: bytes, reason: str) -> None:
    assert reason_of(data) == reason


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite(bad: float) -> None:
    samples = tone(16000)
    samples[100] = bad
    assert reason_of(encode(samples, 16000, subtype="FLOAT")) == "not_finite"


@pytest.mark.parametrize(
    ("kind", "subtype"), [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS")]
)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9])
def test_a_torn_file_is_refused_and_not_read_as_a_shorter_one(kind: str, subtype: str, share: float) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, (32000, 1)).astype(np.float32)
    data = encode(noise, 16000, kind, subtype)
    assert len(load_audio(data, Limits())) == 32000
    assert reason_of(data[: int(share * len(data))]) == "unreadable_audio"


def test_a_torn_mp4_is_refused() -> None:
    data = mp4(tone(16000, 2.0), 16000)
    assert reason_of(data[: len(data) // 2]) == "unreadable_audio"


def test_a_header_that_lies_is_not_believed() -> None:
    data = bytearray(encode(tone(16000), 16000))
    data[24:28] = (0).to_bytes(4, "little")
    assert reason_of(bytes(data)) == "unreadable_audio"
    data[24:28] = (1).to_bytes(4, "little")
    assert reason_of(bytes(data)) == "too_long"


@settings(max_examples=150, deadline=None)
@given(
    head=st.sampled_from(
        [
            b"",
            b"RIFF\x24\0\0\0WAVEfmt ",
            b"fLaC",
            b"OggS",
            b"\0\0\0\x1cftypisom",
            b"ID3",
            b"\xff\xfb\x90",
            b"\xff\xf1",
            b"\x1a\x45\xdf\xa3",
            b"FORM\0\0\0\0AIFF",
            b"caff",
            b".snd",
            b"#!AMR\n",
        ]
    ),
    tail=st.binary(max_size=400),
)
def test_random_bytes_give_a_reason_or_sound(head: bytes, tail: bytes) -> None:
    audio = sound_or_reason(head + tail)
    if isinstance(audio, str):
        assert audio in REASONS
    else:
        assert np.isfinite(audio).all()
        assert len(audio) >= 1600


@settings(max_examples=60, deadline=None)
@given(
    flips=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=8),
    kind=st.sampled_from(["WAV", "FLAC", "OGG"]),
)
def test_flipped_header_bytes_give_a_reason_or_sound(flips: list[tuple[int, int]], kind: str) -> None:
    data = bytearray(encode(tone(8000, 0.3), 8000, kind))
    for place, value in flips:
        data[place % len(data)] = value
    audio = sound_or_reason(bytes(data))
    if isinstance(audio, str):
        assert audio in REASONS
    else:
        assert np.isfinite(audio).all()
        assert len(audio) <= 61 * 16000
