"""What engines for speech share: whether a wave may be heard, its 16-bit samples, silence, and what was never said.

Shapes: L samples of float32 mono at 16 kHz. Knows no engine, no file and no page.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from luthier.errors import RequestError
from luthier.serve.speech.base import RATE

CAP_SECONDS = 60.0
_SLACK_SECONDS = 0.1
"""Lossy codecs pad the ends of a recording; `Uploads` lets as much through."""
FRAME = 480
"""Samples over which loudness is taken: 30 ms, about a syllable's core."""
SILENCE_DB = -60.0
"""A recording whose loudest frame is below this (RMS, re full scale) is silent: a quiet room is at about -65."""


@dataclass(frozen=True)
class Gate:
    """When to disbelieve a Whisper, which writes fluent sentences over silence and noise. The values are those with
    which its authors tell silence and loops (Radford et al. 2022, section 4.5); here each alone is enough."""

    no_speech: float = 0.6
    """More than this probability of "nobody speaks"."""
    log_probability: float = -1.0
    """Less than this, on average over the tokens."""
    repetition: float = 2.4
    """More than this times smaller when compressed."""


DOUBTED = "what was heard is not believed: it sounds like noise or a loop"


def seconds_of(wave_L: NDArray[np.float32]) -> float:
    """Its length. Raises RequestError for more than 60 s, and for what is no wave of finite samples."""
    if wave_L.ndim != 1 or not np.isfinite(wave_L).all():
        raise RequestError(
            f"speech: {wave_L.dtype} samples of shape {wave_L.shape}, not finite mono at 16 kHz",
            "decode the recording with serve/uploads.py",
        )
    seconds = len(wave_L) / RATE
    if seconds > CAP_SECONDS + _SLACK_SECONDS:
        raise RequestError(
            f"speech: {seconds:.1f} s of sound, the most is {CAP_SECONDS:g} s", "send a shorter recording"
        )
    return seconds


def pcm16(wave_L: NDArray[np.float32]) -> bytes:
    """16-bit samples, little-endian; what is beyond full scale is clipped."""
    return (np.clip(wave_L, -1.0, 1.0) * 32767).round().astype("<i2").tobytes()


def silence(wave_L: NDArray[np.float32]) -> str:
    """Why nothing can have been said, or "" where the sound is loud enough. A constant offset is no sound."""
    if len(wave_L) < FRAME:
        return f"nobody spoke: the recording lasts {1000 * len(wave_L) / RATE:.0f} ms"
    frames = wave_L[: len(wave_L) // FRAME * FRAME].reshape(-1, FRAME)
    loudest = 20 * np.log10(max(float(frames.std(axis=1, dtype=np.float64).max()), 1e-10))
    if loudest < SILENCE_DB:
        return f"nobody spoke: the recording is silent (its loudest moment is below {SILENCE_DB:g} dB)"
    return ""
