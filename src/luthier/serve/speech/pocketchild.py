"""The process of pocketsphinx: `python -m luthier.serve.speech.pocketchild`, asked by `luthier.serve.speech.pocket`.

Its decoder holds the interpreter for as long as it listens, up to ten seconds for a minute of sound: in the server's
own process all pages would stand still. Takes 16-bit samples, mono at 16 kHz; knows no page.
"""

from __future__ import annotations

import re
from typing import Any

from pocketsphinx import Decoder, Vad

from luthier.serve.child import Answer, answer_all

MAX_BODY = 2 * 61 * 16_000
FRAMES_A_SECOND = 100
LEAST_VOICE_SECONDS = 0.15
"""Of frames that sound like a voice (WebRTC's detector); below it nothing was said, whatever the decoder found.
Without this rule a second of zeros is transcribed as "and"."""
LONGEST_WORD_SECONDS = 1.5
"""Nobody takes longer over a word; noise that swells and falls is heard as one word of two or three seconds."""
_VARIANT = re.compile(r"\(\d+\)$")  # "the(2)": another pronunciation of the same word
_NO_WORD = ("<", "[", "+")


def prepare() -> Answer:
    """Load the decoder, a quarter of a second."""
    decoder = Decoder(loglevel="FATAL")

    def answer(_head: dict[str, Any], samples: bytes) -> tuple[dict[str, Any], bytes]:
        if voice_seconds(samples) < LEAST_VOICE_SECONDS:
            return {"words": [], "note": "nobody spoke: no voice was heard in the noise"}, b""
        words = listen(decoder, samples)
        return {"words": words, "note": "" if words else "nobody spoke: only noise was heard"}, b""

    return answer


def listen(decoder: Any, samples: bytes) -> list[tuple[str, float, float, float]]:
    """Words with start and end in seconds, and their posterior probability. Equal samples give equal words."""
    decoder.reinit_feat()  # else the noise that it learned from one recording changes what it hears in the next
    decoder.start_utt()
    decoder.process_raw(samples, full_utt=True)  # whole, so that levels are normalised over the recording
    decoder.end_utt()
    if decoder.hyp() is None:
        return []
    decoder.get_lattice()  # the posteriors of the words are made here
    return [
        (
            _VARIANT.sub("", part.word),
            part.start_frame / FRAMES_A_SECOND,
            (part.end_frame + 1) / FRAMES_A_SECOND,
            min(1.0, float(part.prob)),
        )
        for part in decoder.seg()
        if not part.word.startswith(_NO_WORD)
        and (part.end_frame + 1 - part.start_frame) <= LONGEST_WORD_SECONDS * FRAMES_A_SECOND
    ]


def voice_seconds(samples: bytes) -> float:
    """Length of the frames that sound like a voice."""
    detector = Vad(mode=Vad.MEDIUM_STRICT)
    size = detector.frame_bytes
    voiced = sum(detector.is_speech(samples[at : at + size]) for at in range(0, len(samples) - size + 1, size))
    return float(voiced * detector.frame_length)


if __name__ == "__main__":
    answer_all(prepare, MAX_BODY)
