"""Media by reference, decoded: what a row's `sha256:...` stands for, and what can be said of it from its header.

A reference may go on into a medium: `sha256:HEX#frame=3` is the fourth of the frames that are taken of a video (a
picture), `sha256:HEX#sound` its sound track. Knows bounds and sampling; refuses to know rows, tables and models.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from luthier.data.media import load_audio
from luthier.data.pictures import load_picture, picture_size
from luthier.data.video import Film, load_video
from luthier.errors import MediaError
from luthier.recipe_data import Frames, Limits
from luthier.schema import PartType

__all__ = ["DecodedMedia", "Facts", "Film", "MediaSource"]

_FILMS = 2
"""Videos whose frames stay in memory: each at most `video.MEMORY`."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What decides how many tokens a medium takes. Sizes are those of the upright picture, in pixels."""

    kind: PartType
    width: int = 0
    height: int = 0
    samples: int = 0
    """Of sound at 16 kHz."""
    seconds: tuple[float, ...] = ()
    """When each frame of a video is shown."""
    sound: bool = False
    """Whether a video has a sound track that is wanted (data.frames.sound)."""


@dataclass(frozen=True)
class MediaSource:
    """The media of a table. `data` gives the original bytes behind a reference without its `#...`."""

    data: Callable[[str], bytes]
    limits: Limits
    frames: Frames
    _films: OrderedDict[str, Film] = field(default_factory=OrderedDict, repr=False, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """Without films and lock: worker processes have their own."""
        return {"data": self.data, "limits": self.limits, "frames": self.frames}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in (state | {"_films": OrderedDict(), "_lock": threading.Lock()}).items():
            object.__setattr__(self, name, value)

    def facts(self, kind: PartType, reference: str) -> Facts:
        """What is known of a medium, without its pixels where its header tells. Raises MediaError."""
        if kind == "video":
            film = self.load("video", reference)
            width, height = film.frames[0].size
            return Facts("video", width, height, seconds=film.seconds, sound=film.sound is not None)
        whole, _, part = reference.partition("#")
        if kind == "image" and part:
            return Facts("image", *self.load("image", reference).size)
        if kind == "image":
            return Facts("image", *self._size(whole))
        return Facts("audio", samples=len(self.load("audio", reference)))

    def load(self, kind: PartType, reference: str) -> Any:
        """The medium: an Image in RGB, (samples,) float32 at 16 kHz, or a Film. Raises MediaError."""
        whole, _, part = reference.partition("#")
        if kind == "video":
            return self._film(whole)
        if part == "sound":
            sound = self._film(whole).sound
            if sound is None:
                raise MediaError("empty_audio", f"{whole}: no sound track")
            return sound
        if part:
            frames, number = self._film(whole).frames, int(part.removeprefix("frame="))
            if number >= len(frames):
                raise MediaError("unreadable_video", f"{whole}: frame {number} of {len(frames)}")
            return frames[number]
        return self._single(kind, whole)

    def _size(self, reference: str) -> tuple[int, int]:
        """Width and height of a picture."""
        return picture_size(self.data(reference), self.limits)

    def _single(self, kind: PartType, reference: str) -> Any:
        """A picture or recording."""
        data = self.data(reference)
        return load_picture(data, self.limits) if kind == "image" else load_audio(data, self.limits)

    def _film(self, reference: str) -> Film:
        """A video; the last few stay, as its frames are asked for one by one."""
        with self._lock:
            if reference not in self._films:
                self._films[reference] = load_video(self.data(reference), self.limits, self.frames)
                while len(self._films) > _FILMS:
                    self._films.popitem(last=False)
            self._films.move_to_end(reference)
            return self._films[reference]


@dataclass(frozen=True)
class DecodedMedia(MediaSource):
    """Media that came decoded, by whatever names a question has for them: pictures, sound at 16 kHz, films."""

    media: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, media: Mapping[str, Any]) -> DecodedMedia:
        return cls(_no_bytes, Limits(), Frames(), media=media)

    def _size(self, reference: str) -> tuple[int, int]:
        width, height = self._single("image", reference).size
        return width, height

    def _single(self, kind: PartType, reference: str) -> Any:
        if reference not in self.media:
            raise MediaError("missing_media", f"the question names {kind} {reference}, which was not given")
        found = self.media[reference]
        if not isinstance(found, {"image": Image.Image, "audio": np.ndarray, "video": Film}[kind]):
            raise MediaError("missing_media", f"what was given as {reference} is not {kind}")
        return found

    def _film(self, reference: str) -> Film:
        film: Film = self._single("video", reference)
        return film


def _no_bytes(reference: str) -> bytes:
    raise MediaError("missing_media", f"{reference} has no file")
