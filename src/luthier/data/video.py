"""Some frames of a video, each with its time, upright and in RGB; and its sound.

Which frames: so many a second, so many in all, or one a shot. A moment shows the last frame whose stamp is not after
it, so videos of changing rate are read as they are seen. Frames are turned as the file says; pixels that are not square
stay so. All frames of one video together hold at most `MEMORY` bytes: larger ones are made smaller, all alike. Knows no
rows and no models.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from luthier.data.media import MAX_SECONDS, RATE
from luthier.data.videofiles import VideoPlan, check_size, opened, plan_video
from luthier.errors import MediaError, RequestError
from luthier.recipe_data import Frames, Limits

MEMORY = 256 * 2**20
"""Bytes of all frames of one video."""
_LOOKED_AT = 320
"""Width in pixels at which cuts are looked for; PySceneDetect's own default is about as much."""
_SHORTEST = 15
"""Frames of the shortest shot."""


@dataclass(frozen=True, slots=True)
class Film:
    """A video as it is read: some of its frames (RGB, upright, of one size), and its sound where that is wanted."""

    frames: tuple[Image.Image, ...]
    seconds: tuple[float, ...]
    """When each frame is shown, from the beginning."""
    duration: float
    sound: NDArray[np.float32] | None = None
    """(samples,) at 16 kHz, mono."""


def check_video(data: bytes, limits: Limits) -> VideoPlan:
    """Raise MediaError for what is no video within bounds; its stamps are read, its first and last frames decoded."""
    plan = plan_video(data, limits)
    _decode(data, plan, [0, len(plan.stamps) - 1], limits)
    return plan


def load_video(data: bytes, limits: Limits, wanted: Frames) -> Film:
    """The frames of a video that `wanted` asks for. Raises MediaError with any word of `videofiles.REASONS`."""
    plan = plan_video(data, limits)
    chosen = choose_frames(data, plan, limits, wanted)
    frames = _decode(data, plan, chosen, limits)
    sound = video_sound(data, limits) if wanted.sound else None
    seconds = plan.seconds
    return Film(tuple(frames), tuple(seconds[place] for place in chosen), plan.duration, sound)


def choose_frames(data: bytes, plan: VideoPlan, limits: Limits, wanted: Frames) -> list[int]:
    """Places of the wanted frames, in order, none twice: one at least, and at most `wanted.maximum`."""
    if wanted.by == "scene":
        places = scene_middles(data, plan, limits, wanted.threshold)
    else:
        seconds = plan.seconds
        if wanted.by == "rate":
            moments = [step / wanted.rate for step in range(math.ceil(plan.duration * wanted.rate))]
        else:
            moments = [(step + 0.5) * plan.duration / wanted.count for step in range(wanted.count)]
        places = [max(0, bisect_right(seconds, moment + 1e-6) - 1) for moment in moments]
    places = sorted(set(places)) or [0]
    if len(places) > wanted.maximum:
        kept = np.linspace(0, len(places) - 1, wanted.maximum).round().astype(int)
        places = [places[at] for at in dict.fromkeys(kept.tolist())]
    return places


def scene_middles(data: bytes, plan: VideoPlan, limits: Limits, threshold: float) -> list[int]:
    """The middle frame of each shot, by PySceneDetect's ContentDetector (mean change of hue, saturation, value).

    Raises RequestError where PySceneDetect is not installed.
    """
    try:
        from scenedetect import FrameTimecode
        from scenedetect.detectors import ContentDetector
    except ImportError as error:
        raise RequestError(
            "data.frames.by: scene needs PySceneDetect", "pip install 'luthier[video]', or set it to rate or count"
        ) from error
    detector = ContentDetector(threshold=threshold, min_scene_len=_SHORTEST)
    cuts: list[int] = []
    last = 0
    for place, frame in enumerate(_frames(data, limits)):
        width = min(frame.width, _LOOKED_AT)
        height = max(1, round(frame.height * width / frame.width))
        small = frame.reformat(width=width, height=height, format="bgr24").to_ndarray()
        cuts += [cut.frame_num for cut in detector.process_frame(FrameTimecode(place, 30.0), small)]
        last = place
    edges = [0, *sorted(set(cuts)), last + 1]
    middles = {min((begin + end) // 2, len(plan.stamps) - 1) for begin, end in pairwise(edges)}
    return sorted(middles)


def video_sound(data: bytes, limits: Limits) -> NDArray[np.float32] | None:
    """The sound track, (samples,) mono at 16 kHz; None where there is none. Raises MediaError for a broken one."""
    import av

    longest = int(min(limits.maximum_video_seconds, MAX_SECONDS) * RATE) + RATE
    blocks: list[NDArray[np.float32]] = []
    count = 0
    with opened(data) as (file, _):
        if not file.streams.audio:
            return None
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=RATE)
        for frame in file.decode(file.streams.audio[0]):
            for part in resampler.resample(frame):
                blocks.append(part.to_ndarray()[0])
                count += len(blocks[-1])
            if count > longest:
                raise MediaError("too_long", f"the sound track has more than {longest / RATE:.0f} s")
        blocks += [part.to_ndarray()[0] for part in resampler.resample(None)]
    if not count:
        return None
    sound = np.concatenate(blocks).astype(np.float32)
    if not np.isfinite(sound).all():
        raise MediaError("unreadable_video", "samples of the sound track are NaN or infinite")
    return sound


def _frames(data: bytes, limits: Limits) -> Iterator[Any]:
    """All frames in order, each within bounds."""
    with opened(data) as (file, stream):
        for frame in file.decode(stream):
            check_size(frame.width, frame.height, limits)
            yield frame


def _decode(data: bytes, plan: VideoPlan, places: Sequence[int], limits: Limits) -> list[Image.Image]:
    """The frames at some places (in order) as pictures. Stretches without a wanted frame are jumped over."""
    found: list[Image.Image] = []
    with opened(data) as (file, stream):
        decoder = file.decode(stream)
        shown: Any = None
        read_to = -1  # the place of `shown`
        for place in places:
            stamp = plan.stamps[place]
            begin = plan.keys[max(0, bisect_right(plan.keys, stamp) - 1)]
            if read_to >= 0 and begin > plan.stamps[read_to]:
                file.seek(begin, stream=stream, backward=True)
                decoder, shown = file.decode(stream), None
            while shown is None or _stamp(shown) < stamp:
                following = next(decoder, None)
                if following is None:
                    break
                check_size(following.width, following.height, limits)
                if shown is not None and _stamp(following) > stamp:
                    shown = following  # the wanted one was not decoded
                    break
                shown = following
            if shown is None or _stamp(shown) != stamp:
                raise MediaError("unreadable_video", f"the frame at {plan.seconds[place]:.2f} s cannot be decoded")
            read_to = place
            found.append(_picture(shown, len(places)))
    return found


def _stamp(frame: Any) -> int:
    return int(frame.pts if frame.pts is not None else frame.dts)


def _picture(frame: Any, together: int) -> Image.Image:
    """A frame upright in RGB, so small that `together` of its size fit into MEMORY."""
    shrink = min(1.0, math.sqrt(MEMORY / (together * frame.width * frame.height * 3)))
    size = (max(1, int(frame.width * shrink)), max(1, int(frame.height * shrink)))
    picture = Image.fromarray(frame.reformat(format="rgb24").to_ndarray())
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    # FFmpeg counts the turn that shows it right anticlockwise, as Pillow does.
    turn = round(frame.rotation) % 360
    return picture.rotate(turn, expand=True) if turn else picture
