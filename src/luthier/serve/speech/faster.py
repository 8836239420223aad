"""Speech by faster-whisper: Whisper in CTranslate2, eight-bit weights on the processor, Silero's voice detector first.

Shapes: L samples of float32 mono at 16 kHz. Knows no page. A size that is not on the machine is fetched from the hub
at the first call, and only where this engine was asked for by name.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.engines.threads import answering_threads
from luthier.errors import RequestError
from luthier.serve.speech.base import Transcript, Word
from luthier.serve.speech.sound import DOUBTED, Gate, seconds_of, silence

PREFERRED = ("base", "small", "tiny")
"""A question of 4 s takes base 1 to 2 s on two processors and small 3 to 6 s; tiny mishears much."""
LOOK_PAST_SECONDS = 2.0
"""Silence within a text that looks made up is passed over from this length on."""


class FasterWhisper:
    """One model, loaded at the first call; calls from several threads wait for one another."""

    name = "faster-whisper"

    def __init__(self, model: str, language: str = "", beam_size: int = 1, gate: Gate | None = None) -> None:
        self._model_name = model
        self._language = language
        self._beam_size = beam_size
        self._gate = gate or Gate()
        self._lock = Lock()
        self._model: Any = None

    def transcribe(self, wave_L: NDArray[np.float32]) -> Transcript:
        """Raises RequestError beyond 60 s, for a model that cannot be had, and for a language that it does not know."""
        seconds, note = seconds_of(wave_L), silence(wave_L)
        if note:
            return Transcript("", seconds, self._language, self.name, note=note)
        with self._lock:
            found, about = self._loaded().transcribe(
                wave_L,
                language=self._language or None,
                beam_size=self._beam_size,
                temperature=0.0,  # no second tries at random: the same sound gives the same text
                condition_on_previous_text=False,
                vad_filter=True,
                word_timestamps=True,
                hallucination_silence_threshold=LOOK_PAST_SECONDS,
            )
            segments = list(found)
        note = DOUBTED if about.duration_after_vad else "nobody spoke: no voice was found"
        return self._transcript(segments, seconds, about.language, note)

    def close(self) -> None:
        """Free the model; a later call loads it again."""
        with self._lock:
            self._model = None

    def _transcript(self, segments: list[Any], seconds: float, language: str, note: str) -> Transcript:
        """`note`: what is said where nothing is believed."""
        believed = [segment for segment in segments if self._believed(segment)]
        text = "".join(segment.text for segment in believed).strip()
        return Transcript(text, seconds, language, self.name, tuple(_words(believed)), "" if text else note)

    def _believed(self, segment: Any) -> bool:
        return bool(
            segment.no_speech_prob <= self._gate.no_speech
            and segment.avg_logprob >= self._gate.log_probability
            and segment.compression_ratio <= self._gate.repetition
        )

    def _loaded(self) -> Any:
        """The model. Called with the lock held."""
        if self._model is None:
            from faster_whisper import WhisperModel

            try:
                model = WhisperModel(
                    self._model_name, device="cpu", compute_type="int8", cpu_threads=answering_threads(small=False)
                )
            except (OSError, ValueError, RuntimeError) as error:
                raise RequestError(
                    f"speech: faster-whisper cannot have the model {self._model_name}: {error}",
                    "name a size, or a folder in CTranslate2's layout; pocketsphinx needs no model",
                ) from error
            if self._language and self._language not in model.supported_languages:
                raise RequestError(
                    f"speech: the model {self._model_name} knows no language {self._language!r}",
                    f"one of {', '.join(sorted(model.supported_languages))}",
                )
            self._model = model
        return self._model


def local_model(name: str = "") -> str:
    """The folder of a model that is on this machine: a folder in CTranslate2's layout, or a size in the hub's cache
    (empty: the first of PREFERRED that is there); "" where there is none. Looks at no network."""
    if name and Path(name).is_dir():
        return name if _complete(Path(name)) else ""
    from faster_whisper.utils import download_model

    for size in (name,) if name else PREFERRED:
        try:
            folder = Path(download_model(size, local_files_only=True))
        except (OSError, ValueError):  # no such size, or not here
            continue
        if _complete(folder):
            return str(folder)
    return ""


def _complete(folder: Path) -> bool:
    """Without its own tokenizer a folder would send faster-whisper to the hub for one."""
    return (folder / "model.bin").is_file() and (folder / "tokenizer.json").is_file()


def _words(segments: Iterable[Any]) -> Iterable[Word]:
    for segment in segments:
        for word in segment.words or ():
            yield Word(word.word.strip(), float(word.start), float(word.end), float(word.probability))
