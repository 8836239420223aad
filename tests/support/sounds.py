"""Recordings in the containers that clients send: from libsndfile, and as browsers write them, through FFmpeg."""

from __future__ import annotations

import io

import av
import numpy as np
import soundfile
import soxr

from luthier.data.voice import Delivery, Speaker, render

RATE = 16_000


def say(text: str) -> np.ndarray:
    """espeak, at 16 kHz; the same samples at every call."""
    return render(text, Delivery(rate=0.0), Speaker(variant="f2", snr_db=40), np.random.default_rng(0))


def noises() -> dict[str, np.ndarray]:
    """Two seconds each of what is no speech."""
    rng, count = np.random.default_rng(1), 2 * RATE
    time_n = np.arange(count) / RATE
    pink = np.fft.irfft(np.fft.rfft(rng.normal(0, 1, count)) / np.sqrt(np.maximum(1, np.arange(count // 2 + 1))), count)
    pink *= 0.3 / np.abs(pink).max()
    chord = sum(np.sin(2 * np.pi * hertz * time_n) for hertz in (220, 277, 330, 440)) * np.exp(-((time_n * 2) % 1) * 3)
    found = {
        "white": rng.normal(0, 0.05, count),
        "loud white": rng.normal(0, 0.3, count),
        "pink": pink,
        "swelling": pink * (0.5 + 0.5 * np.sin(2 * np.pi * 4 * time_n)),
        "hum": 0.1 * np.sin(2 * np.pi * 50 * time_n),
        "tone": 0.3 * np.sin(2 * np.pi * 1000 * time_n),
        "chords": 0.1 * chord,
        "clicks": 0.8 * (rng.random(count) < 0.0005),
    }
    return {name: wave.astype(np.float32) for name, wave in found.items()}


def written(wave: np.ndarray, rate: int, kind: str, subtype: str | None = None) -> bytes:
    """`wave` of shape (samples,) or (samples, channels) at `rate`, by libsndfile."""
    stream = io.BytesIO()
    soundfile.write(stream, wave, rate, format=kind, subtype=subtype)
    return stream.getvalue()


def recorded(wave: np.ndarray, rate: int, kind: str, codec: str) -> bytes:
    """As a browser's recorder writes `wave` (samples,): WebM without a length in its header, or fragmented MP4."""
    stream = io.BytesIO()
    options = {"webm": {"live": "1"}, "mp4": {"movflags": "frag_keyframe+empty_moov"}}[kind]
    with av.open(stream, "w", format=kind, options=options) as container:
        track = container.add_stream(codec, rate=rate)
        track.layout = "mono"
        resampler = av.AudioResampler(format=track.format, layout="mono", rate=rate, frame_size=track.frame_size or 960)
        frame = av.AudioFrame.from_ndarray(wave[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate = rate
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(track.encode(part))
        container.mux(track.encode(None))
    return stream.getvalue()


def at(wave: np.ndarray, rate: int) -> np.ndarray:
    """A wave of 16 kHz at another rate."""
    return np.asarray(soxr.resample(wave, RATE, rate, quality="VHQ"), np.float32)


def containers(wave: np.ndarray) -> dict[str, bytes]:
    """One wave of 16 kHz in every form that a client may send it."""
    stereo = np.stack([at(wave, 44_100)] * 2, axis=1)
    return {
        "wav 16 kHz": written(wave, RATE, "WAV"),
        "wav 44.1 kHz stereo": written(stereo, 44_100, "WAV"),
        "wav 8 kHz": written(at(wave, 8_000), 8_000, "WAV"),
        "wav 48 kHz float": written(at(wave, 48_000), 48_000, "WAV", "FLOAT"),
        "flac": written(stereo, 44_100, "FLAC", "PCM_24"),
        "mp3": written(at(wave, 44_100), 44_100, "MP3"),
        "ogg vorbis": written(at(wave, 44_100), 44_100, "OGG", "VORBIS"),
        "ogg opus": written(at(wave, 48_000), 48_000, "OGG", "OPUS"),
        "webm opus": recorded(at(wave, 48_000), 48_000, "webm", "libopus"),
        "mp4 aac": recorded(at(wave, 48_000), 48_000, "mp4", "aac"),
    }
