"""A transcript in lines with times: for SubRip, WebVTT, and the segments of OpenAI's transcriptions."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.serve.speech.base import Transcript

_PAUSE_SECONDS = 0.6
_WORDS_A_LINE = 12


@dataclass(frozen=True)
class Segment:
    """A line, and its times in seconds."""

    start: float
    end: float
    text: str


def segments(heard: Transcript) -> list[Segment]:
    """Lines that end at a pause or after twelve words; one line where the engine tells no times."""
    if not heard.words:
        return [Segment(0.0, heard.seconds, heard.text)] if heard.text else []
    lines = [[heard.words[0]]]
    for word in heard.words[1:]:
        if word.start - lines[-1][-1].end > _PAUSE_SECONDS or len(lines[-1]) == _WORDS_A_LINE:
            lines.append([])
        lines[-1].append(word)
    return [Segment(line[0].start, line[-1].end, " ".join(word.text for word in line)) for line in lines]


def srt(heard: Transcript) -> str:
    """As SubRip."""
    parts = [
        f"{number}\n{_clock(part.start, ',')} --> {_clock(part.end, ',')}\n{part.text}\n"
        for number, part in enumerate(segments(heard), 1)
    ]
    return "\n".join(parts)


def vtt(heard: Transcript) -> str:
    """As WebVTT."""
    parts = [f"{_clock(part.start, '.')} --> {_clock(part.end, '.')}\n{part.text}\n" for part in segments(heard)]
    return "\n".join(["WEBVTT\n", *parts])


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(1000 * seconds)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{point}{rest % 1000:03}"
