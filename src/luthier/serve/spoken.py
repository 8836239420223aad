"""A recording from a page to words: decoded within bounds, transcribed in its turn, and offered for correction.

Shared by the pages on which people speak. Refuses to know what the words are for.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from html import escape

import soundfile

from luthier.errors import RequestError
from luthier.serve.pagefiles import taken
from luthier.serve.services import Services
from luthier.serve.speech.base import RATE
from luthier.serve.store import Correction


@dataclass(frozen=True)
class Heard:
    """What an engine heard in a recording, and the recording as FLAC (16 kHz mono), until it is sent or dropped."""

    text: str
    engine: str
    language: str
    seconds: float
    sound: bytes

    def corrected(self, text: str, consent: bool) -> Correction:
        """With what its speaker made of it."""
        return Correction(self.text, text, self.engine, self.language, self.seconds, self.sound, consent)


def hear(services: Services, owner: str, path: str) -> Heard:
    """What is said in a file that the browser sent, which is removed once it was read.

    Raises RequestError and MediaError with a sentence for the page: too long, no sound, nobody spoke, all are busy.
    """
    sound = services.uploads.sound(taken(path), "the recording")
    found = services.waiting.call(owner, lambda: services.speech.transcribe(sound.wave_L))
    if not found.text.strip():
        raise RequestError(found.note or "nobody was heard in the recording", "speak closer to the microphone")
    kept = io.BytesIO()
    soundfile.write(kept, sound.wave_L, RATE, format="FLAC", subtype="PCM_16")
    return Heard(found.text.strip(), found.engine, found.language, found.seconds, kept.getvalue())


def heard_line(heard: Heard | None) -> str:
    """What was heard, beside the box in which it can be mended."""
    if heard is None:
        return ""
    return (
        f'<div class="heard"><strong>Heard</strong> ({escape(heard.engine)}): {escape(heard.text)}'
        '<div class="quiet">Mend it in the box below before you send it.</div></div>'
    )
