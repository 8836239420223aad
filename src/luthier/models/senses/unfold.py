"""A video as its frames, for bases that see pictures and no videos: each frame's time in words, then the frame.

The time stands in brackets in minutes and seconds to a tenth, `[0:03.5]`, whatever the template writes around it. The
sound track comes last, where it is wanted and the base hears. Knows references; refuses to open anything.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from luthier.data.mediasource import Facts
from luthier.schema import Part, PartType


def unfold(reference: str, video: Facts, kinds: Collection[PartType]) -> Iterator[tuple[Part, Facts | None]]:
    """The parts that stand for a video on a base that reads `kinds`; with each medium its facts, where they are known.

    References are those of `MediaSource`: `REFERENCE#frame=N` and `REFERENCE#sound`.
    """
    frame = Facts("image", video.width, video.height)
    for number, second in enumerate(video.seconds):
        yield Part("text", clock(second)), None
        yield Part("image", media=f"{reference}#frame={number}"), frame
    if video.sound and "audio" in kinds:
        yield Part("audio", media=f"{reference}#sound"), None


def clock(second: float) -> str:
    """`[minutes:seconds]`, to a tenth of a second."""
    tenths = round(second * 10)
    return f"[{tenths // 600}:{tenths % 600 / 10:04.1f}]"
