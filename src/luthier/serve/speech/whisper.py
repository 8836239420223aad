"""Speech by transformers' Whisper: for those that were tuned, in the folder that tuning leaves.

Shapes: L samples of float32 mono at 16 kHz. Weights are read from safetensors alone and no code of the folder is run.
Knows no page.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from luthier.errors import RequestError
from luthier.serve.speech.base import RATE, Transcript, Word
from luthier.serve.speech.sound import DOUBTED, Gate, seconds_of, silence

WINDOW_SECONDS = 30.0


class Whisper:
    """One model, loaded at the first call; calls from several threads wait for one another."""

    name = "whisper"

    def __init__(self, model: str, language: str = "", gate: Gate | None = None) -> None:
        check_folder(model)
        self._model_name = model
        self._language = language
        self._gate = gate or Gate()
        self._lock = Lock()
        self._listener: Any = None

    def transcribe(self, wave_L: NDArray[np.float32]) -> Transcript:
        """Word times where the model has alignment heads. Raises RequestError beyond 60 s (30 s for a model without
        timestamps), for a model that cannot be had, and for a language that it does not know."""
        seconds, note = seconds_of(wave_L), silence(wave_L)
        if note:
            return Transcript("", seconds, self._language, self.name, note=note)
        with self._lock:
            found, by_word = self._listen(wave_L)
        text = found["text"].strip()
        chunks = found.get("chunks", [])
        language = self._language or _code(next((chunk["language"] for chunk in chunks if chunk.get("language")), "en"))
        packed = text.encode()
        if not text:
            return Transcript("", seconds, language, self.name, note="nobody spoke: no voice was found")
        if len(packed) > self._gate.repetition * len(zlib.compress(packed)):
            return Transcript("", seconds, language, self.name, note=DOUBTED)
        words = chunks if by_word else []
        return Transcript(text, seconds, language, self.name, tuple(_words(words, seconds)))

    def close(self) -> None:
        """Free the model; a later call loads it again."""
        with self._lock:
            self._listener = None

    def _listen(self, wave_L: NDArray[np.float32]) -> tuple[dict[str, Any], bool]:
        """Text and chunks, and whether these are words. Called with the lock held."""
        if self._listener is None:
            self._listener = _load(self._model_name)
        facts = self._listener.model.generation_config
        stamps: Literal["word"] | bool = hasattr(facts, "no_timestamps_token_id")
        if not stamps and len(wave_L) > WINDOW_SECONDS * RATE:
            raise RequestError(
                f"speech: {self._model_name} writes no timestamps and so hears {WINDOW_SECONDS:g} s at most",
                "send a shorter recording, or keep no_timestamps_token_id in its generation_config.json",
            )
        if stamps and getattr(facts, "alignment_heads", None):
            stamps = "word"
        told: dict[str, Any] = {"num_beams": 1, "temperature": (0.0,), "condition_on_prev_tokens": False}
        if stamps:  # the token of silence is found by its place before that of "no timestamps"
            told |= {"no_speech_threshold": self._gate.no_speech, "logprob_threshold": self._gate.log_probability}
        multilingual = bool(getattr(facts, "is_multilingual", False))
        if multilingual:
            told |= {"task": "transcribe"} | ({"language": self._language} if self._language else {})
        try:
            heard: dict[str, Any] = self._listener(
                {"raw": wave_L, "sampling_rate": RATE},
                return_timestamps=stamps,
                return_language=multilingual and not self._language,
                generate_kwargs=told,
            )
        except ValueError as error:
            raise RequestError(f"speech: {self._model_name}: {error}", "set another language or model") from error
        return heard, stamps == "word"


def check_folder(model: str) -> None:
    """Raises RequestError for a folder that holds no whole Whisper in safetensors; a hub id is not looked at."""
    folder = Path(model)
    if not folder.is_dir():
        return
    if (folder / "adapter_config.json").is_file():
        raise RequestError(f"{model}: an adapter, not a whole Whisper", "merge it into its base first")
    config = folder / "config.json"
    kind = json.loads(config.read_text(encoding="utf-8")).get("model_type") if config.is_file() else None
    if kind != "whisper":
        raise RequestError(f"{config}: model_type is {kind}, not whisper", "name the folder of a Whisper")
    if not any(folder.glob("*.safetensors")):
        raise RequestError(f"{model}: no weights in safetensors", "save the model again with save_pretrained")


def _load(model: str) -> Any:
    from transformers import WhisperForConditionalGeneration, WhisperProcessor, pipeline

    try:
        processor = WhisperProcessor.from_pretrained(model)
        weights = WhisperForConditionalGeneration.from_pretrained(model, use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise RequestError(
            f"speech: the Whisper {model} cannot be had: {error}", "name the folder that tuning left, or a hub id"
        ) from error
    return pipeline(
        "automatic-speech-recognition",
        model=weights.eval(),
        tokenizer=processor.tokenizer,
        feature_extractor=processor.feature_extractor,
        device="cpu",
    )


def _code(language: str) -> str:
    """Whisper's own name of a language ("norwegian") as its code ("no")."""
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    return str(TO_LANGUAGE_CODE.get(language, language))


def _words(chunks: list[dict[str, Any]], seconds: float) -> list[Word]:
    """An end that is not told is the recording's; a chunk without letters is no word."""
    return [
        Word(text, float(start or 0.0), float(seconds if end is None else end))
        for text, (start, end) in ((chunk["text"].strip(), chunk["timestamp"]) for chunk in chunks)
        if text
    ]
