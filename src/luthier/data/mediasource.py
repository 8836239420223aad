"""Media by reference, decoded: what a row's `sha256:...` stands for, and what can be said of it from its header.

A reference may go on into a medium: `sha256:HEX#frame=3` is the fourth of the frames that are taken of a video (a
picture), `sha256:HEX#sound` its sound track. Knows bounds and sampling; refuses to know rows, tables and models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from luthier.data.media import load_audio
from luthier.data.pictures import load_picture, picture_size
from luthier.recipe_data import Frames, Limits
from luthier.schema import PartType


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


@dataclass(frozen=True, slots=True)
class Film:
    """A video as it is read: some of its frames (RGB, upright, of one size), and its sound where that is wanted."""

    frames: tuple[Image.Image, ...]
    seconds: tuple[float, ...]
    """When each frame is shown, from the beginning."""
    duration: float
    sound: NDArray[np.float32] | None = None
    """(samples,) at 16 kHz, mono."""


@dataclass(frozen=True)
class MediaSource:
    """The media of a table. `data` gives the original bytes behind a reference without its `#...`."""

    data: Callable[[str], bytes]
    limits: Limits
    frames: Frames

    def facts(self, kind: PartType, reference: str) -> Facts:
        """What is known of a medium, without its pixels where its header tells. Raises MediaError."""
        if kind == "image":
            return Facts("image", *picture_size(self.data(reference), self.limits))
        return Facts("audio", samples=len(self.load("audio", reference)))

    def load(self, kind: PartType, reference: str) -> Any:
        """The medium: an Image in RGB, (samples,) float32 at 16 kHz, or a Film. Raises MediaError."""
        if kind == "image":
            return load_picture(self.data(reference), self.limits)
        return load_audio(self.data(reference), self.limits)
