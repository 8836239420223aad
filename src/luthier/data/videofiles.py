"""Opens video files within bounds: what a file is by its first bytes, when its frames are shown, what is torn.

Knows containers, codecs and time stamps; refuses to know which frames are wanted and what they show. FFmpeg is given
one demuxer by name and bytes in memory: it never follows a playlist, a `concat:` list or an address. Nothing is decoded
here: the stamps of the packets tell when each frame is shown.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.errors import MediaError

if TYPE_CHECKING:
    from luthier.recipe_data import Limits

REASONS = ("unreadable_video", "empty_video", "refused_playlist", "too_long", "too_many_pixels", "too_large")
MAX_BYTES = 2**31
MAX_FRAMES = 500_000
"""Frames of one file: more than four hours at 30 a second."""
CODECS = frozenset(
    "h264 hevc vp8 vp9 av1 libdav1d mpeg1video mpeg2video mpeg4 msmpeg4v2 msmpeg4v3 mjpeg theora flv1 wmv2 prores "
    "ffv1 png rawvideo h263".split()
)
"""Decoders that are let in; FFmpeg has hundreds more, hardly used and hardly tested."""
_MISSING_SECONDS = 0.5
"""How much earlier than its header says a file may end."""


@dataclass(frozen=True, slots=True)
class VideoPlan:
    """What is known of a video before it is decoded."""

    container: str
    width: int
    height: int
    """As stored: what turns the picture is known when it is decoded."""
    stamps: tuple[int, ...]
    """When each frame is shown, in order, in units of `tick`."""
    keys: tuple[int, ...]
    """The stamps from which decoding can begin."""
    tick: float
    """Seconds."""
    duration: float
    """Seconds from the first frame to the end of the last one."""

    @property
    def seconds(self) -> tuple[float, ...]:
        """When each frame is shown, counted from the first."""
        return tuple((stamp - self.stamps[0]) * self.tick for stamp in self.stamps)


def video_container(data: bytes) -> str:
    """FFmpeg's name of the demuxer that the first bytes call for, or "" where none is known.

    Raises MediaError (refused_playlist) for lists of other files and addresses.
    """
    head = bytes(data[:64])
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"#extm3u", b"ffconcat", b"concat:", b"subfile", b"[playlist]", b"<?xml", b"<mpd", b"file '")):
        raise MediaError(
            "refused_playlist", f"a list of other files, which is not followed: it begins with {head[:20]!r}"
        )
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return "mov"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if head[:4] == b"OggS":
        return "ogg"
    if head[:3] == b"FLV":
        return "flv"
    if head[:4] == b"\0\0\x01\xba":
        return "mpeg"
    if len(data) > 188 and head[:1] == b"G" and data[188:189] == b"G":
        return "mpegts"
    return ""


@contextmanager
def opened(data: bytes) -> Iterator[tuple[Any, Any]]:
    """The container and its first stream of moving pictures. Raises MediaError, also for what FFmpeg says inside."""
    import av

    if not data:
        raise MediaError("empty_video", "no bytes")
    if len(data) > MAX_BYTES:
        raise MediaError("too_large", f"{len(data):,} bytes, the most is {MAX_BYTES:,}")
    container = video_container(data)
    if not container:
        raise MediaError("unreadable_video", f"not a known video file; it begins with {bytes(data[:8])!r}")
    try:
        with av.open(io.BytesIO(data), mode="r", format=container) as file:
            # A picture of the cover is a stream of its own in music files.
            streams = [stream for stream in file.streams.video if not stream.disposition & _COVER]
            if not streams:
                raise MediaError("empty_video", f"{container}: no moving pictures in it")
            stream = streams[0]
            name = stream.codec_context.name if stream.codec_context is not None else "unknown"
            if name not in CODECS:
                raise MediaError("unreadable_video", f"{container}: codec {name} is not read")
            stream.thread_type = "SLICE"  # whole frames ahead on several threads take memory for each
            yield file, stream
    except (av.FFmpegError, ValueError, OverflowError, EOFError) as error:
        raise MediaError("unreadable_video", f"{container}: {_said(error)}") from error


def plan_video(data: bytes, limits: Limits) -> VideoPlan:
    """When the frames are shown, by the stamps of all packets. Raises MediaError with any word of `REASONS`."""
    with opened(data) as (file, stream):
        width, height = int(stream.codec_context.width), int(stream.codec_context.height)
        check_size(width, height, limits)
        tick = float(stream.time_base)
        stamps: list[int] = []
        keys: list[int] = []
        end = 0
        for packet in file.demux(stream):
            stamp = packet.pts if packet.pts is not None else packet.dts
            if stamp is None or not packet.size or packet.is_discard:
                continue
            if packet.is_corrupt:
                raise MediaError("unreadable_video", f"a broken packet at {stamp * tick:.2f} s")
            stamps.append(stamp)
            end = max(end, stamp + (packet.duration or 0))
            if packet.is_keyframe:
                keys.append(stamp)
            if len(stamps) > MAX_FRAMES:
                raise MediaError("too_long", f"more than {MAX_FRAMES:,} frames")
        claimed = float(stream.duration * stream.time_base) if stream.duration else 0.0
        frames = int(stream.frames or 0)
        container = file.format.name
    if not stamps or not keys:
        raise MediaError("empty_video", f"{container}: no frame in it")
    stamps = sorted(set(stamps))
    duration = max(end - stamps[0], stamps[-1] - stamps[0] + 1) * tick
    if duration > limits.maximum_video_seconds:
        raise MediaError("too_long", f"{duration:.1f} s, the most is {limits.maximum_video_seconds:g} s")
    if claimed - duration > _MISSING_SECONDS and frames > len(stamps):
        raise MediaError("unreadable_video", f"cut short: {duration:.2f} of {claimed:.2f} s")
    return VideoPlan(container, width, height, tuple(stamps), tuple(sorted(keys)), tick, duration)


def check_size(width: int, height: int, limits: Limits) -> None:
    """Raises MediaError for frames of no size, or of too many pixels."""
    if width <= 0 or height <= 0:
        raise MediaError("empty_video", f"frames of {width} x {height} pixels")
    if width * height > limits.maximum_pixels:
        raise MediaError("too_many_pixels", f"frames of {width} x {height}, the most is {limits.maximum_pixels:,}")


def _said(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__


_COVER = 0x0400
"""FFmpeg's AV_DISPOSITION_ATTACHED_PIC."""
