"""Recordings as `data:` addresses for an offline page, within a limit of bytes.

The media type comes from the first bytes, since a table names its media by digest alone. This module refuses
to know about predictions or HTML, and it does not decode anything but the frames of a PCM wav.
"""

from __future__ import annotations

import base64
import io
import re
import wave
from dataclasses import dataclass
from pathlib import Path

CLIP_BYTES = 400 * 1024
_MAGIC = ((b"fLaC", "audio/flac"), (b"OggS", "audio/ogg"), (b"ID3", "audio/mpeg"))


@dataclass(frozen=True, slots=True)
class Clip:
    """`uri` is empty when nothing is embedded; `note` then says why. `size` counts the embedded bytes."""

    uri: str
    size: int
    note: str


def embed(run: Path, media: str, room: int) -> Clip:
    """The recording `media` (`sha256:<hex>`) of a run in at most `room` bytes; a bad clip does not raise."""
    digest = media.removeprefix("sha256:")
    # The digest becomes a path: anything but hex digits could point outside of the run.
    path = run / "data" / "media" / digest
    if not re.fullmatch(r"[0-9a-f]{64}", digest) or not path.is_file():
        return Clip("", 0, "the recording is not in the run folder")
    data = path.read_bytes()
    kind, note = mime(data), ""
    if not kind:
        return Clip("", 0, "a recording of a kind that browsers do not play")
    if len(data) > room:
        cut = shorten(data, room) if kind == "audio/wav" else b""
        if not cut:
            return Clip("", 0, f"not embedded ({len(data) // 1024} KB): data/media/{digest}")
        note = f"the first {len(cut) / len(data):.0%} of the recording; all of it: data/media/{digest}"
        data = cut
    return Clip(f"data:{kind};base64,{base64.b64encode(data).decode()}", len(data), note)


def mime(data: bytes) -> str:
    """The media type by the first bytes; empty when it is none of wav, flac, ogg, mp3."""
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return "audio/wav"
    for magic, kind in _MAGIC:
        if data.startswith(magic):
            return kind
    # A bare MPEG frame: eleven set bits, then a layer that is not the reserved 00 (which is ADTS).
    mpeg = len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0 and data[1] & 6
    return "audio/mpeg" if mpeg else ""


def shorten(data: bytes, room: int) -> bytes:
    """The beginning of a PCM wav in at most `room` bytes; empty when under half a second would be left."""
    try:
        with wave.open(io.BytesIO(data)) as source:
            frames = (room - 64) // (source.getsampwidth() * source.getnchannels())
            if frames < source.getframerate() / 2:
                return b""
            target = io.BytesIO()
            with wave.open(target, "wb") as sink:
                sink.setparams(source.getparams())
                sink.writeframes(source.readframes(frames))
            return target.getvalue()
    except (wave.Error, EOFError):  # not PCM or cut short: the caller prints the path instead
        return b""
