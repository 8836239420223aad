"""Small pictures of a run's media, for pages and trackers.

A reference becomes a JPEG of a few kilobytes, or a word on why there is none; nothing raises. This module refuses to
know about predictions and HTML.
"""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass
from pathlib import Path

from luthier.errors import MediaError
from luthier.recipe_data import Limits

SIDE = 160
"""Pixels of the longer side."""
_QUALITY = 80
_REFERENCE = re.compile(r"sha256:([0-9a-f]{64})(#.*)?")


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A JPEG with its size in pixels; `data` is empty where there is none, and `note` says why."""

    data: bytes
    width: int
    height: int
    note: str = ""

    @property
    def uri(self) -> str:
        """A `data:` address, empty for none."""
        return f"data:image/jpeg;base64,{base64.b64encode(self.data).decode()}" if self.data else ""


def thumbnail(run: Path, reference: str) -> Thumbnail:
    """The picture behind `sha256:HEX` in a run's table, upright, at most SIDE pixels wide and high."""
    found = _REFERENCE.fullmatch(reference)  # nothing but hex digits becomes a path
    if found is None or found[2]:
        return Thumbnail(b"", 0, 0, "no picture of its own")
    path = run / "data" / "media" / found[1]
    if not path.is_file():
        return Thumbnail(b"", 0, 0, "the picture is not in the run folder")
    from luthier.data.pictures import load_picture

    try:
        picture = load_picture(path.read_bytes(), Limits())
    except (MediaError, OSError) as error:
        return Thumbnail(b"", 0, 0, f"the picture cannot be read: {error}")
    picture.thumbnail((SIDE, SIDE))
    packed = io.BytesIO()
    picture.save(packed, "JPEG", quality=_QUALITY)
    return Thumbnail(packed.getvalue(), *picture.size)
