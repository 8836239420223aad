"""Opens, bound-checks and decodes audio, and brings it to mono at 16 kHz.

Knows containers, sampling rates and channels; refuses to know rows, columns, grades and models. What a
file is gets decided by its first bytes, never by its name. Nothing is decoded before its header has been
believed: rate, channels and length are checked first, so a few bytes cannot claim an hour of memory.
"""

from __future__ import annotations

import io
import math
import struct
from typing import TYPE_CHECKING

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from luthier.errors import MediaError

if TYPE_CHECKING:
    from luthier.recipe_data import Limits

RATE = 16_000
MAX_CHANNELS = 64
MAX_RATE = 1_000_000
MAX_SECONDS = 3600.0
REASONS = ("unreadable_audio", "empty_audio", "silent_audio", "too_short", "too_long", "not_finite")
# FFmpeg is given these demuxers alone: left to guess, it would follow a playlist to other files and hosts.
_FFMPEG_FORMAT = {".m4a": "mp4", ".webm": "matroska", ".aac": "aac", ".amr": "amr", ".mp3": "mp3"}
_STREAMED = 0x7FFF_0000  # a writer that could not seek back leaves a size near 2^31 or 2^32


def audio_suffix(data: bytes) -> str:
    """The suffix that the first bytes call for (`.wav`, `.flac`, `.ogg`, ...), or "" where none is known."""
    head = bytes(data[:12])
    if head[:4] in (b"RIFF", b"RF64", b"RIFX") and head[8:12] == b"WAVE":
        return ".wav"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return ".aiff"
    if head[4:8] == b"ftyp":
        return ".m4a"
    known = {
        b"fLaC": ".flac",
        b"OggS": ".ogg",
        b"\x1a\x45\xdf\xa3": ".webm",
        b"caff": ".caf",
        b".snd": ".au",
        b"#!AM": ".amr",
    }
    if head[:4] in known:
        return known[head[:4]]
    if head[:3] == b"ID3":
        return ".mp3"
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:
        return ".aac" if head[1] & 0x06 == 0 else ".mp3"
    return ""


def decode_audio(data: bytes, max_seconds: float = MAX_SECONDS) -> tuple[NDArray[np.float32], int]:
    """Decode a whole recording: samples of shape (samples, channels), about -1..1, and the rate in Hz.

    libsndfile first, FFmpeg for what it does not read (mp4, m4a, webm). Raises MediaError: unreadable_audio,
    empty_audio or too_long (more than `max_seconds`, by the header and again while decoding).
    """
    if not data:
        raise MediaError("empty_audio", "no bytes")
    suffix = audio_suffix(data)
    if not suffix:
        raise MediaError("unreadable_audio", f"not a known audio file; it begins with {bytes(data[:8])!r}")
    torn = _torn(data, suffix)
    if torn:
        raise MediaError("unreadable_audio", torn)
    if suffix in (".m4a", ".webm", ".aac", ".amr"):
        return _decode_ffmpeg(data, suffix, max_seconds)
    try:
        return _decode_sndfile(data, max_seconds)
    except soundfile.LibsndfileError as error:
        if suffix in _FFMPEG_FORMAT:
            return _decode_ffmpeg(data, suffix, max_seconds)
        raise MediaError("unreadable_audio", f"{suffix[1:]}: {error.error_string}") from error


def to_mono_16k(samples: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    """Mean of the channels of (samples, channels), resampled from `rate` Hz to 16 kHz; shape (n,)."""
    mono = np.asarray(np.mean(samples, axis=1, dtype=np.float64), dtype=np.float32)
    if rate == RATE:
        return mono
    return np.asarray(soxr.resample(mono, rate, RATE, quality="HQ"), dtype=np.float32)


def load_audio(data: bytes, limits: Limits) -> NDArray[np.float32]:
    """Decode, check and resample a recording; float32 of shape (n,) at 16 kHz.

    `limits` gives minimum_seconds, maximum_seconds and silence_peak (amplitude). Raises MediaError with any
    word of `REASONS`.
    """
    samples, rate = decode_audio(data, limits.maximum_seconds)
    seconds = len(samples) / rate
    if seconds < limits.minimum_seconds:
        raise MediaError("too_short", f"{seconds:.3f} s, the least is {limits.minimum_seconds:g} s")
    if not np.isfinite(samples).all():
        raise MediaError("not_finite", f"{int((~np.isfinite(samples)).sum())} samples are NaN or infinite")
    audio = to_mono_16k(samples, rate)
    peak = float(np.abs(audio).max(initial=0.0))
    if peak < limits.silence_peak:
        raise MediaError("silent_audio", f"peak {peak:.2g}, the least is {limits.silence_peak:g}")
    return audio


def _check_bounds(rate: int, channels: int, frames: int, max_seconds: float) -> None:
    if not 0 < rate <= MAX_RATE or not 0 < channels <= MAX_CHANNELS:
        raise MediaError("unreadable_audio", f"header says {rate} Hz, {channels} channels")
    if frames > max_seconds * rate:
        raise MediaError("too_long", f"{frames / rate:.1f} s, the most is {max_seconds:g} s")


def _decode_sndfile(data: bytes, max_seconds: float) -> tuple[NDArray[np.float32], int]:
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        _check_bounds(file.samplerate, file.channels, file.frames, max_seconds)
        if file.frames == 0:
            raise MediaError("empty_audio", "no samples")
        samples = file.read(dtype="float32", always_2d=True)
        if len(samples) < file.frames - file.samplerate // 100:
            raise MediaError("unreadable_audio", f"cut short: {len(samples)} of {file.frames} samples could be decoded")
        return samples, int(file.samplerate)


def _decode_ffmpeg(data: bytes, suffix: str, max_seconds: float) -> tuple[NDArray[np.float32], int]:
    import av

    try:
        with av.open(io.BytesIO(data), mode="r", format=_FFMPEG_FORMAT[suffix]) as container:
            if not container.streams.audio:
                raise MediaError("unreadable_audio", f"{suffix[1:]}: no audio stream")
            stream = container.streams.audio[0]
            rate, channels = int(stream.codec_context.sample_rate), int(stream.codec_context.channels)
            timed = stream.duration and stream.time_base
            claimed = float(stream.duration * stream.time_base) if timed else 0.0
            _check_bounds(rate, channels, math.ceil(claimed * max(rate, 1)), max_seconds + 0.1)
            resampler = av.AudioResampler(format="fltp")
            blocks: list[NDArray[np.float32]] = []
            count = 0
            for frame in container.decode(stream):
                for part in resampler.resample(frame):
                    blocks.append(part.to_ndarray().T.astype(np.float32, copy=False))
                    count += len(blocks[-1])
                    _check_bounds(rate, channels, count, max_seconds + 0.1)
    except (av.FFmpegError, ValueError) as error:
        raise MediaError("unreadable_audio", f"{suffix[1:]}: {error}") from error
    if count == 0:
        raise MediaError("empty_audio", "no samples")
    if count < (claimed - 0.1) * rate:
        raise MediaError("unreadable_audio", f"cut short: {count / rate:.2f} of {claimed:.2f} s")
    return np.concatenate(blocks), rate


def _torn(data: bytes, suffix: str) -> str:
    """What is missing at the end of a WAV or Ogg file, or "".

    libsndfile reads such files as shorter ones and says nothing: a grade would then be learned from half
    an answer.
    """
    if suffix == ".wav" and data[:4] == b"RIFF":
        place = 12
        while place + 8 <= len(data):
            name, size = struct.unpack_from("<4sI", data, place)
            if name == b"data":
                missing = place + 8 + size - len(data)
                known = missing > 0 and size < _STREAMED
                return f"cut short: {missing} bytes of samples are missing" if known else ""
            place += 8 + size + size % 2
    if suffix == ".ogg":
        place = 0
        while place < len(data) and data[place : place + 4] == b"OggS":
            table = data[place + 27 : place + 27 + data[place + 26]] if place + 27 <= len(data) else b""
            if place + 27 > len(data) or len(table) < data[place + 26]:
                return "cut short: the last Ogg page is torn"
            place += 27 + len(table) + sum(table)
        if place > len(data):
            return f"cut short: {place - len(data)} bytes of the last Ogg page are missing"
    return ""
