"""Uploads made to harm: each is refused with one sentence, soon, and no process takes a gigabyte over it."""

from __future__ import annotations

import io
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from luthier.errors import MediaError
from luthier.serve.settings import Limits
from luthier.serve.uploads import REASONS, Uploads
from support.sounds import RATE, containers, recorded, written

SECONDS = 10
MEMORY_KB = 1_000_000
TONE = (0.3 * np.sin(2 * np.pi * 440 * np.arange(RATE // 2) / RATE)).astype(np.float32)


@pytest.fixture(scope="module")
def uploads() -> Iterator[Uploads]:
    made = Uploads(Limits())
    yield made
    made.close()


def wav(rate: int, channels: int, size: int, body: bytes, bits: int = 16, code: int = 1) -> bytes:
    """A WAV whose header says what one likes."""
    block = max(1, channels * bits // 8)
    form = struct.pack("<HHIIHH", code, channels, rate, min(rate * block, 2**32 - 1), block % 2**16, bits)
    return (
        b"RIFF"
        + struct.pack("<I", (size + 36) % 2**32)
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + form
        + b"data"
        + (struct.pack("<I", size) + body)
    )


def png(width: int, height: int, pixels: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG whose header says what one likes, with right checksums."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def picture(kind: str, width: int = 64, height: int = 48, **options: object) -> bytes:
    stream = io.BytesIO()
    shade = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(shade).save(stream, kind, **options)
    return stream.getvalue()


def flat_jpeg(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height)).save(stream, "JPEG")
    return stream.getvalue()


def zeros(count: int) -> bytes:
    """Deflated: a thousandth of the size."""
    packer, block = zlib.compressobj(9), bytes(2**20)
    return b"".join(packer.compress(block) for _ in range(count // 2**20)) + packer.flush()


def samples(value: float) -> bytes:
    return np.full(RATE, value, "<f4").tobytes()


def flac(rate: int, channels: int, frames: int) -> bytes:
    """A small FLAC whose header says what one likes."""
    data = bytearray(written(np.zeros((1000, 8), np.int16), 44_100, "FLAC"))
    data[18:26] = (rate << 44 | (channels - 1) << 41 | 15 << 36 | frames).to_bytes(8)
    return bytes(data)


HOUR = 3 * 3600 * RATE * 2
SQUARE = (np.sign(np.sin(np.arange(RATE) / 50)) * 3.4e38).astype("<f4").tobytes()
LISTEN_ELSEWHERE = b"#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:9/a.ts\n"
SOUNDS = {
    "nothing": b"",
    "a page": b"<!doctype html><html><body>sign in</body></html>",
    "a playlist": LISTEN_ELSEWHERE,
    "a list of files": b"ffconcat version 1.0\nfile '/etc/passwd'\n",
    "a session description": b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n",
    "an avi": b"RIFF\x24\0\0\0AVI LIST",
    "a zip": b"PK\3\4" + bytes(100),
    "random bytes": np.random.default_rng(0).bytes(5000),
    "three hours in the header": wav(RATE, 1, HOUR, bytes(1000)),
    "three hours, streamed": wav(1, 1, 0xFFFFFFFF, bytes(40_000)),
    "65 s of flac": written(np.zeros(65 * 8000), 8000, "FLAC"),
    "70 s of opus": recorded(np.zeros(70 * 8000, np.float32), 8000, "webm", "libopus"),
    "65 s of mp3": written(np.zeros(65 * 8000), 8000, "MP3"),
    "0 Hz": wav(0, 1, 2000, bytes(2000)),
    "500 kHz": wav(500_000, 1, 200_000, bytes(200_000)),
    "2^32 Hz": wav(2**32 - 1, 1, 2000, bytes(2000)),
    "64 channels": wav(RATE, 64, 64 * 2 * RATE, bytes(64 * 2 * RATE)),
    "65535 channels": wav(RATE, 65_535, 2000, bytes(2000)),
    "0 channels": wav(RATE, 0, 2000, bytes(2000)),
    "4 ms": wav(RATE, 1, 128, bytes(128)),
    "NaN": wav(RATE, 1, 4 * RATE, samples(np.nan), 32, 3),
    "infinite": wav(RATE, 1, 4 * RATE, samples(np.inf), 32, 3),
    "beyond float32 once resampled": wav(44_100, 1, 4 * RATE, SQUARE, 32, 3),
    "cut short": written(TONE, RATE, "WAV")[:4000],
    "a torn ogg": written(TONE, RATE, "OGG")[:-100],
    "a gigabyte by its header": flac(655_350, 8, 59 * 655_350),
    "a picture": picture("PNG"),
    "50 MB": bytes(50 * 2**20),
}
WEBP = picture("WEBP", lossless=True)
PICTURES = {
    "nothing": b"",
    "a page": b"<!doctype html><html><body>sign in</body></html>",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='http://127.0.0.1:9/a.png'/></svg>",
    "169 megapixels": png(13_000, 13_000, zlib.compress(bytes(13_000 * 1_626), 9), 1, 0),
    "a bomb": png(100_000, 100_000, zeros(2**28)),
    "an empty one": png(0, 10, zlib.compress(b"")),
    "a gif of 4 gigapixels": b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0) + bytes(100),
    "a torn jpeg": picture("JPEG")[:500],
    "a torn png": picture("PNG")[:500],
    "a wrong checksum": picture("PNG").replace(b"IDAT", b"IDAT\0", 1)[:-1],
    "a bmp of 4 gigapixels": b"BM"
    + struct.pack("<IIIIiiHHIIiiII", 1000, 0, 54, 40, 65_535, 65_535, 1, 24, 0, 0, 0, 0, 0, 0),
    "a webp of 268 megapixels": WEBP[:24] + struct.pack("<I", 0x0FFF_FFFF) + WEBP[28:],
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
    "a sound": written(TONE, RATE, "WAV"),
    "random bytes": np.random.default_rng(0).bytes(5000),
    "13 megapixels": flat_jpeg(4001, 3001),
    "50 MB": bytes(50 * 2**20),
}


def peak_kb(uploads: Uploads) -> int:
    """The most memory that any living decoder ever had."""
    found = [Path(f"/proc/{child.pid}/status").read_text() for child in uploads._children if child.alive]
    return max((int(text.split("VmHWM:")[1].split()[0]) for text in found if "VmHWM:" in text), default=0)


def refused(uploads: Uploads, kind: str, data: bytes, name: str) -> MediaError:
    began = time.monotonic()
    with pytest.raises(MediaError) as caught:
        (uploads.sound if kind == "sound" else uploads.picture)(data, name)
    assert time.monotonic() - began < SECONDS
    assert peak_kb(uploads) < MEMORY_KB
    sentence = caught.value.detail
    assert caught.value.reason in REASONS
    assert sentence.startswith(f"“{name}” ")
    assert sentence.endswith(".")
    assert sentence.isprintable()
    assert len(sentence) < 300
    return caught.value


@pytest.mark.parametrize("name", SOUNDS)
def test_a_hostile_recording_is_refused_with_a_sentence(name: str, uploads: Uploads) -> None:
    assert refused(uploads, "sound", SOUNDS[name], name).reason in REASONS


@pytest.mark.parametrize("name", PICTURES)
def test_a_hostile_picture_is_refused_with_a_sentence(name: str, uploads: Uploads) -> None:
    assert refused(uploads, "picture", PICTURES[name], name).reason in REASONS


def test_a_bomb_behind_a_small_header_fills_its_picture_and_no_more(uploads: Uploads) -> None:
    data = png(100, 100, zeros(2**29))
    assert len(data) < 2 * 2**20
    assert uploads.picture(data, "bomb.png").size == (100, 100)
    assert peak_kb(uploads) < MEMORY_KB


def test_half_a_minute_of_eight_channels_is_taken_in_bounded_memory(uploads: Uploads) -> None:
    data = written(np.zeros((30 * 192_000, 8), np.int16), 192_000, "FLAC")
    assert uploads.sound(data, "a.flac").seconds == 30
    assert peak_kb(uploads) < MEMORY_KB


def test_good_uploads_are_taken_after_all_this(uploads: Uploads) -> None:
    assert uploads.sound(written(TONE, RATE, "WAV"), "a.wav").seconds == 0.5
    assert uploads.picture(picture("JPEG"), "a.jpg").size == (64, 48)


WHOLE_SOUNDS = tuple(containers(TONE).values())
WHOLE_PICTURES = (
    *(picture(kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")),
    picture("JPEG", progressive=True),
    picture("TIFF", compression="tiff_lzw"),
    picture("WEBP", lossless=True),
)
BYTES = st.one_of(st.sampled_from([b"\0", b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\xff"]), st.binary(max_size=8))


@st.composite
def spoilt(draw: st.DrawFn, wholes: tuple[bytes, ...]) -> bytes:
    """A good file with bytes exchanged (headers more than the rest), put in, cut out and cut off."""
    data = bytearray(draw(st.sampled_from(wholes)))
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.one_of(st.integers(0, 120), st.integers(0, len(data))))
        put = draw(BYTES)
        match draw(st.sampled_from(["over", "over", "over", "in", "out", "off"])):
            case "over":
                data[place : place + len(put)] = put
            case "in":
                data[place:place] = put * draw(st.sampled_from([1, 1, 1000]))
            case "out":
                del data[place : place + 16]
            case "off" if draw(st.booleans()):
                del data[max(place, 16) :]
    return bytes(data)


def taken_or_refused(uploads: Uploads, kind: str, data: bytes) -> None:
    """Sound and pictures within the limits, or a refusal; soon, and in bounded memory."""
    began = time.monotonic()
    try:
        if kind == "sound":
            sound = uploads.sound(data, "x")
            assert np.isfinite(sound.wave_L).all()
            assert 0.09 < sound.seconds < 60.3
        else:
            found = uploads.picture(data, "x")
            assert found.mode == "RGB"
            assert found.width * found.height <= uploads.limits.pixels
    except MediaError as error:
        found = error.reason in REASONS, error.detail.isprintable()
        assert found == (True, True)
    assert time.monotonic() - began < SECONDS
    assert peak_kb(uploads) < MEMORY_KB


QUICK = settings(
    max_examples=180, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck), database=None
)
LONG = settings(QUICK, max_examples=4000)


@QUICK
@given(data=spoilt(WHOLE_SOUNDS))
def test_spoilt_recordings(uploads: Uploads, data: bytes) -> None:
    taken_or_refused(uploads, "sound", data)


@QUICK
@given(data=spoilt(WHOLE_PICTURES))
def test_spoilt_pictures(uploads: Uploads, data: bytes) -> None:
    taken_or_refused(uploads, "picture", data)


@pytest.mark.slow
@LONG
@given(data=spoilt(WHOLE_SOUNDS))
def test_thousands_of_spoilt_recordings(uploads: Uploads, data: bytes) -> None:
    taken_or_refused(uploads, "sound", data)


@pytest.mark.slow
@LONG
@given(data=spoilt(WHOLE_PICTURES))
def test_thousands_of_spoilt_pictures(uploads: Uploads, data: bytes) -> None:
    taken_or_refused(uploads, "picture", data)
