"""Speech by pocketsphinx: small, English alone, its model inside the wheel, so that a machine without a hub has ears.

Shapes: L samples of float32 mono at 16 kHz. Knows no page. Its probabilities are posteriors within its own lattice:
they tell its words apart from one another, not good transcripts from bad ones.
"""

from __future__ import annotations

from threading import Lock

import numpy as np
from numpy.typing import NDArray

from luthier.serve.child import Child
from luthier.serve.speech.base import Transcript, Word
from luthier.serve.speech.sound import pcm16, seconds_of, silence

ANSWER_SECONDS = 120.0
"""A minute of sound takes 4 to 12 s on one core; the rest is for a machine that does other work."""


class PocketSphinx:
    """One decoder in a process of its own, started at the first call; callers from several threads wait in turn."""

    name = "pocketsphinx"

    def __init__(self) -> None:
        self._lock = Lock()
        self._child: Child | None = None

    def transcribe(self, wave_L: NDArray[np.float32]) -> Transcript:
        """Lower-case words without punctuation; equal sound gives equal text. Raises RequestError beyond 60 s, and
        ChildFailed where its process broke down: the next call starts another."""
        seconds, note = seconds_of(wave_L), silence(wave_L)
        words: tuple[Word, ...] = ()
        if not note:
            with self._lock:
                if self._child is None or not self._child.alive:
                    self._child = Child("luthier.serve.speech.pocketchild")
                found, _ = self._child.ask({}, pcm16(wave_L), ANSWER_SECONDS, 0)
            words, note = tuple(Word(*word) for word in found["words"]), found["note"]
        return Transcript(" ".join(word.text for word in words), seconds, "en", self.name, words, note)

    def close(self) -> None:
        """End the process; a later call starts another."""
        if (child := self._child) is not None:
            child.kill()  # whoever is being listened to is not waited for
            with self._lock:
                child.close()
