"""The process that decodes what clients send: `python -m luthier.serve.decoding`, asked by `luthier.serve.uploads`.

Once its decoders are loaded it can open neither file nor connection, and has a bounded share of memory and of
processor time; a codec that breaks breaks here. It knows no file name: bytes come in, samples or pixels go out.
"""

from __future__ import annotations

import io
import resource
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
import soxr
from PIL import Image

from luthier.data.media import decode_audio, to_mono_16k
from luthier.data.pictures import load_picture
from luthier.errors import MediaError
from luthier.recipe_data import Limits
from luthier.serve.child import Answer, answer_all

GROWTH_BYTES = 640 * 2**20
"""Memory beside that of the loaded decoders. A WebP of 12 megapixels takes 200 MB; a minute of stereo at 192 kHz,
through FFmpeg, 190 MB."""
CPU_SECONDS = 15
"""Of one upload; the asker's clock is stricter, this one holds where the asker is gone."""
MAX_BODY = 64 * 2**20
RATES = (4_000, 192_000)
MAX_CHANNELS = 8
MIN_SECONDS = 0.1
_LINUX = sys.platform == "linux"


def decode(head: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    """One upload. `head` has "kind": sound (with "seconds", the most) or picture (with "pixels", the most).

    The answer is `{"numbers": [rate, channels]}` and float32 samples, mono at 16 kHz; or `{"numbers": [width, height]}`
    and RGB; or `{"refused": reason, "detail": words}`. After anything unforeseen the answer is the last.
    """
    _allow_cpu(CPU_SECONDS)
    try:
        return _sound(body, head["seconds"]) if head["kind"] == "sound" else _picture(body, head["pixels"])
    except MediaError as error:
        return {"refused": error.reason, "detail": error.detail}, b""
    except MemoryError:
        return {"refused": "too_large", "detail": "it takes too much memory to decode", "last": True}, b""
    except Exception as error:  # decoders let every kind of exception out of a hostile file
        return {"refused": "broke_decoder", "detail": type(error).__name__, "last": True}, b""


def _sound(data: bytes, most_seconds: float) -> tuple[dict[str, Any], bytes]:
    samples, rate = decode_audio(data, most_seconds)
    channels = samples.shape[1]
    if not RATES[0] <= rate <= RATES[1] or channels > MAX_CHANNELS:
        taken = f"taken are {RATES[0]:,} to {RATES[1]:,} Hz and up to {MAX_CHANNELS} channels"
        raise MediaError("odd_sound", f"{rate:,} Hz and {channels} channels, {taken}")
    if len(samples) < MIN_SECONDS * rate:
        raise MediaError("too_short", f"{1000 * len(samples) / rate:.0f} ms, the least is {1000 * MIN_SECONDS:g} ms")
    with np.errstate(all="ignore"):  # the largest floats overflow in the mean: caught in the next line
        wave = to_mono_16k(samples, rate)
    if not np.isfinite(wave).all():
        raise MediaError("not_finite", "some of its samples are NaN or infinite")
    return {"numbers": [rate, channels]}, wave.tobytes()


def _picture(data: bytes, most_pixels: int) -> tuple[dict[str, Any], bytes]:
    picture = load_picture(data, Limits(maximum_pixels=most_pixels))
    return {"numbers": [picture.width, picture.height]}, picture.tobytes()


def _rehearse() -> None:
    """Decode a little of everything, so that what decoders load on first use is here before the doors close."""
    tone = np.zeros((16_000, 2), np.float32)
    for kind in ("WAV", "FLAC", "OGG", "MP3"):
        stream = io.BytesIO()
        soundfile.write(stream, tone, 44_100, format=kind)
        to_mono_16k(*decode_audio(stream.getvalue()))
    soxr.resample(tone[:, 0], 44_100, 16_000, quality="HQ")
    stream = io.BytesIO()
    with av.open(stream, "w", format="matroska") as container:
        track = container.add_stream("libopus", rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 9_600), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48_000
        container.mux([*track.encode(frame), *track.encode(None)])
    decode_audio(stream.getvalue())
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        stream = io.BytesIO()
        Image.new("RGB", (8, 8)).save(stream, kind)
        load_picture(stream.getvalue(), Limits())


def _close_doors() -> None:
    """No file and no socket is opened from here on, nothing is written, and memory is bounded."""
    loaded = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if _LINUX else 0
    for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(kind, (0, 0))
    if _LINUX:  # elsewhere this limit is not kept; the clock and the caps must do
        most = _within_hard(resource.RLIMIT_AS, loaded + GROWTH_BYTES)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _allow_cpu(seconds: int) -> None:
    """So much processor time from now on; the limit counts from the start of the process, and so moves along."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    most = _within_hard(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (most, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _within_hard(kind: int, wanted: int) -> int:
    """What the user's own limits leave of it."""
    hard = resource.getrlimit(kind)[1]
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)


def prepare() -> Answer:
    """Load the decoders, then close the doors."""
    _rehearse()
    _close_doors()
    return decode


if __name__ == "__main__":
    answer_all(prepare, MAX_BODY)
