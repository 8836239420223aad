"""Videos made on the spot: each frame has a colour of its own, so that which frame was read can be seen."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np


def colour(place: int) -> tuple[int, int, int]:
    """The colour of a frame: neighbours differ, and compression keeps them apart."""
    return (40 + 60 * (place % 4), 40 + 60 * (place // 4 % 4), 40 + 60 * (place // 16 % 4))


def place_of(picture: object, places: int = 64) -> int:
    """Which frame a picture is, by its mean colour."""
    mean = np.asarray(picture, dtype=np.float64).reshape(-1, 3).mean(0)
    return int(np.argmin([np.abs(mean - colour(place)).sum() for place in range(places)]))


def film(
    frames: int = 30,
    rate: int = 10,
    size: tuple[int, int] = (64, 48),
    container: str = "mp4",
    codec: str = "libx264",
    stamps: Sequence[float] | None = None,
    sound: bool = False,
    colours: Sequence[tuple[int, int, int]] | None = None,
    keys: int = 12,
) -> bytes:
    """A video. `stamps` are seconds at which frames are shown, where the rate changes."""
    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.gop_size = keys
        stream.codec_context.time_base = Fraction(1, 1000)
        voice = None
        if sound:
            voice = file.add_stream("aac" if container in ("mp4", "mov") else "libopus", rate=48000)
        for place in range(frames):
            shade = colours[place] if colours else colour(place)
            picture = np.full((size[1], size[0], 3), shade, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = round(1000 * (stamps[place] if stamps else place / rate))
            frame.time_base = Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
        if voice is not None:
            seconds = frames / rate
            tone = np.sin(2 * np.pi * 1000 * np.arange(int(48000 * seconds)) / 48000).astype(np.float32) * 0.4
            for begin in range(0, len(tone), 960):
                part = av.AudioFrame.from_ndarray(tone[None, begin : begin + 960], format="fltp", layout="mono")
                part.sample_rate, part.pts = 48000, begin
                file.mux(voice.encode(part))
            file.mux(voice.encode(None))
    return out.getvalue()
