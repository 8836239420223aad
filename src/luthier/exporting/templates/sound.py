"""A recording from a visitor -> float32 mono at 16 kHz, within bounds. No address is ever opened, only bytes."""

import io
from pathlib import Path

import av
import numpy as np
import soundfile
import soxr

RATE = 16_000
MOST_BYTES = 10 * 2**20
MOST_RATE, MOST_CHANNELS = 384_000, 8
FORMATS = {b"\x1a\x45\xdf\xa3": "matroska", b"ftyp": "mp4"}
"""FFmpeg is told what a file is by its first bytes: left to guess, it would follow playlists to other places."""


class Refused(Exception):
    """A sentence for the visitor."""


def read_sound(path: str, most_seconds: float, least_seconds: float = 0.1, silence: float = 1e-4) -> np.ndarray:
    """Raises Refused for what is no recording, and for one that is too large, too long, too short or silent."""
    data = Path(path).read_bytes() if Path(path).stat().st_size <= MOST_BYTES else b""
    if not data:
        raise Refused("The file is empty, or larger than 10 MB.")
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            check(file.samplerate, file.channels, file.frames, most_seconds)
            samples, rate = file.read(dtype="float32", always_2d=True), file.samplerate
    except soundfile.LibsndfileError:
        samples, rate = _read_video_formats(data, most_seconds)
    mono = samples.mean(axis=1, dtype=np.float64).astype(np.float32)
    wave = mono if rate == RATE else soxr.resample(mono, rate, RATE, quality="HQ").astype(np.float32)
    if len(wave) < least_seconds * RATE:
        raise Refused("The recording is too short.")
    if not np.isfinite(wave).all() or np.abs(wave).max() < silence:
        raise Refused("Nothing can be heard in the recording.")
    return wave


def check(rate: int, channels: int, frames: int, most_seconds: float) -> None:
    if not 0 < rate <= MOST_RATE or not 0 < channels <= MOST_CHANNELS:
        raise Refused("The file is not a usual recording.")
    if frames > most_seconds * rate:
        raise Refused(f"The recording is longer than {most_seconds:g} seconds.")


def _read_video_formats(data: bytes, most_seconds: float) -> tuple[np.ndarray, int]:
    """What libsndfile does not read: browsers' webm and telephones' m4a."""
    kind = FORMATS.get(data[:4]) or FORMATS.get(data[4:8])
    if kind is None:
        raise Refused("The file is not a recording that can be read (wav, flac, ogg, mp3, m4a, webm).")
    blocks, count = [], 0
    try:
        with av.open(io.BytesIO(data), format=kind) as container:
            if not container.streams.audio:
                raise Refused("There is no sound in the file.")
            stream = container.streams.audio[0]
            rate, channels = stream.codec_context.sample_rate, stream.codec_context.channels
            resampler = av.AudioResampler(format="fltp")
            for frame in container.decode(stream):
                for part in resampler.resample(frame):
                    blocks.append(part.to_ndarray().T)
                    count += len(blocks[-1])
                    check(rate, channels, count, most_seconds)
    except (av.FFmpegError, ValueError) as error:
        raise Refused("The file cannot be read as a recording.") from error
    if not count:
        raise Refused("There is no sound in the file.")
    return np.concatenate(blocks), rate
