"""What every engine for speech gives: a text, and where it tells them the times of its words.

Shapes: L samples of float32 mono at 16 kHz. Knows no engine and no page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

RATE = 16_000


@dataclass(frozen=True)
class Word:
    """A word with its times in seconds, and how sure the engine is of it (0 to 1; None: it does not say)."""

    text: str
    start: float
    end: float
    probability: float | None = None


@dataclass(frozen=True)
class Transcript:
    """What was heard. An empty text: nobody spoke, and `note` says how that was found."""

    text: str
    seconds: float
    language: str
    engine: str
    words: tuple[Word, ...] = ()
    note: str = ""


class Transcriber(Protocol):
    """One engine with its model, loaded at the first call."""

    name: str

    def transcribe(self, wave_L: NDArray[np.float32]) -> Transcript:
        """Raises RequestError for sound longer than 60 s, and for an engine whose model cannot be had."""
        ...

    def close(self) -> None: ...
