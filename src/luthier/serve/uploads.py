"""What clients send, as samples and pixels: size caps first, then decoded in a child process that may break.

Shapes: L samples of float32 mono at 16 kHz. Takes bytes alone: no address is fetched, and a file's name is shown and
never opened. Refuses to know pages, models and what a recording or picture is for.
"""

from __future__ import annotations

from dataclasses import dataclass
from queue import Empty, LifoQueue
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from luthier.data.media import RATE, audio_suffix
from luthier.data.picturefiles import picture_kind
from luthier.data.videofiles import video_container
from luthier.errors import MediaError, RequestError
from luthier.serve.child import Child, ChildFailed
from luthier.serve.settings import Limits
from luthier.serve.waiting import Busy

DECODING_SECONDS = 10.0
WAITING_SECONDS = 20.0
WORKERS = 2
USES = 200
"""Uploads that one process decodes before a fresh one takes its place: what leaks, leaks no further."""
_SLACK_SECONDS = 0.2
_NAME_CHARS, _DETAIL_CHARS = 60, 160
_WORDS = {
    "too_large": "is too large",
    "too_slow": "took too long to decode",
    "broke_decoder": "cannot be decoded",
    "odd_sound": "is no usual recording",
    "unreadable_audio": "cannot be read as a recording",
    "empty_audio": "holds no sound",
    "too_short": "is too short",
    "too_long": "is too long",
    "not_finite": "is damaged",
    "unreadable_image": "cannot be read as a picture",
    "too_many_pixels": "has too many pixels",
    "empty_image": "holds no picture",
    "moves": "is a video or a recording, and no picture",
}
REASONS = tuple(_WORDS)


@dataclass(frozen=True)
class Sound:
    """A recording as models hear it, and what it was: channels are averaged, so that sound on one side of two comes
    at half its amplitude (6 dB down), as in training. Silence is let through: whoever listens finds it."""

    wave_L: NDArray[np.float32]
    seconds: float
    rate: int
    """Of the file, in Hz."""
    channels: int
    format: str
    """By its first bytes: wav, flac, ogg, mp3, webm, m4a, ..."""


class Uploads:
    """Decodes in at most two processes, started when first needed; from any thread.

    All refusals are MediaErrors: `reason` is a word of REASONS, `detail` one sentence for a page, to be escaped there.
    """

    def __init__(self, limits: Limits, workers: int = WORKERS) -> None:
        self.limits = limits
        self._lock = Lock()
        self._children: set[Child] = set()
        self._closed = False
        self._free: LifoQueue[Child | None] = LifoQueue()  # the last used one first: the others may never be started
        for _ in range(workers):
            self._free.put(None)

    def sound(self, data: bytes, name: str) -> Sound:
        """Raises MediaError, and Busy where nobody has time to decode it."""
        self._weigh(data, name, self.limits.audio_bytes)
        most = int((self.limits.seconds + _SLACK_SECONDS) * RATE) * 4
        (rate, channels), body = self._ask({"kind": "sound", "seconds": self.limits.seconds}, data, name, most)
        wave_L = np.frombuffer(body[: len(body) // 4 * 4], np.float32).copy()
        if not np.isfinite(wave_L).all():
            raise _nonsense(name)
        return Sound(wave_L, len(wave_L) / RATE, rate, channels, audio_suffix(data)[1:])

    def picture(self, data: bytes, name: str) -> Image.Image:
        """RGB, upright. Raises MediaError, and Busy where nobody has time to decode it."""
        if _moves(data):
            raise _refused("moves", name, "send one of its frames as a picture")
        self._weigh(data, name, self.limits.picture_bytes)
        most = 3 * self.limits.pixels
        (width, height), body = self._ask({"kind": "picture", "pixels": self.limits.pixels}, data, name, most)
        if 3 * width * height != len(body):  # looked at first: the picture's memory is taken by its size
            raise _nonsense(name)
        return Image.frombytes("RGB", (width, height), body)

    def close(self) -> None:
        """End the processes; what they are decoding is refused."""
        with self._lock:
            self._closed = True
            for child in self._children:
                child.kill()

    def _weigh(self, data: bytes, name: str, most: int) -> None:
        if len(data) > most:
            raise _refused("too_large", name, f"{len(data) / 2**20:.1f} MiB, the most is {most / 2**20:.1f} MiB")

    def _ask(self, head: dict[str, Any], data: bytes, name: str, most: int) -> tuple[tuple[int, int], bytes]:
        """The two numbers and the body, of at most `most` bytes, of the child's answer. Raises MediaError for a
        refusal."""
        try:
            child = self._free.get(timeout=WAITING_SECONDS)
        except Empty as error:
            raise Busy("all decoders are at work", "full", int(DECODING_SECONDS)) from error
        try:
            child = self._ready(child)
            answer, body = _decoded(child, head, data, name, most)
        finally:
            self._free.put(child)
        if "refused" in answer:
            reason = answer["refused"] if answer["refused"] in REASONS else "broke_decoder"
            longest = f"the most is {self.limits.seconds:g} s"
            raise _refused(reason, name, longest if reason == "too_long" else str(answer.get("detail", "")))
        match answer:
            case {"numbers": [int(first), int(second)]} if first > 0 and second > 0:
                return (first, second), body
        raise _nonsense(name)

    def _ready(self, child: Child | None) -> Child:
        """This child, or a fresh one in its place where it is worn out or gone."""
        if child is not None and child.alive and child.uses < USES:
            return child
        fresh = Child("luthier.serve.decoding")
        with self._lock:
            if child is not None:
                child.close()
                self._children.discard(child)
            self._children.add(fresh)
            if self._closed:
                fresh.kill()
                raise RequestError("uploads: the server is stopping", "send it again when it is back")
        return fresh


def _moves(data: bytes) -> bool:
    """Whether these bytes begin as a video or a recording does. HEIF and AVIF pictures lie in a container of videos."""
    if data[4:8] == b"ftyp" and data[8:11] in (b"hei", b"hev", b"mif", b"msf", b"avi"):
        return False
    try:
        return bool(video_container(data)) and not picture_kind(data)
    except MediaError:  # a list of addresses: no picture, and refused as none
        return False


def shown(name: str) -> str:
    """A client's file name, fit to be shown: at most 60 characters, the last ones kept, and a dot for each that does
    not print (control characters, turned directions). Not escaped for HTML."""
    if len(name) > _NAME_CHARS:
        name = f"{name[: _NAME_CHARS - 13]}…{name[-12:]}"
    return _printable(name) or "the file"


def _decoded(child: Child, head: dict[str, Any], data: bytes, name: str, most: int) -> tuple[dict[str, Any], bytes]:
    try:
        return child.ask(head, data, DECODING_SECONDS, most)
    except ChildFailed as error:
        if error.late:
            raise _refused("too_slow", name, f"the most is {DECODING_SECONDS:g} s") from error
        raise _refused("broke_decoder", name, "the decoder broke down over it") from error


def _refused(reason: str, name: str, detail: str) -> MediaError:
    return MediaError(reason, f"“{shown(name)}” {_WORDS[reason]}: {_printable(detail[:_DETAIL_CHARS]).rstrip('.')}.")


def _nonsense(name: str) -> MediaError:
    return _refused("broke_decoder", name, "the decoder gave nonsense")


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "·" for letter in text)
