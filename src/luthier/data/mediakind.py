"""What a file that somebody names is, by its first bytes and never by its name: a picture, a recording or a video.

Knows containers; refuses to know bounds, and to decode anything.
"""

from __future__ import annotations

from luthier.data.media import audio_suffix
from luthier.data.picturefiles import picture_kind
from luthier.data.videofiles import opened, video_container
from luthier.errors import MediaError
from luthier.schema import PartType

_EITHER = ("mov", "matroska", "ogg")
"""Containers of moving pictures and of sound alone."""


def media_kind(data: bytes) -> PartType | None:
    """image, audio or video; None for what is neither, and for every text (`BMW ...` begins as a picture does)."""
    if is_text(data):
        return None
    if picture_kind(data):
        return "image"
    container = video_container(data)
    if container in _EITHER:
        return "video" if _moves(data) else "audio"
    if container:
        return "video"
    return "audio" if audio_suffix(data) else None


def is_text(data: bytes) -> bool:
    """Whether these bytes are a text in UTF-8."""
    if b"\0" in data:
        return False
    try:
        data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return False
    return True


def _moves(data: bytes) -> bool:
    """Whether a container has moving pictures in it. A torn one is a video: that says best what is wrong with it."""
    try:
        with opened(data):
            return True
    except MediaError as error:
        return error.reason != "empty_video"
