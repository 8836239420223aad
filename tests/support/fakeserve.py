"""Stand-ins for what a server asks: a chat engine, a verdict engine, ears. No torch, no model, no waiting but `delay`.

Every answer follows from the request alone, so a test can say what it will be (`FakeChat.answer`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.engines.base import ChatRequest, Piece, Recording, ServedModel, Verdict, Zone
from luthier.errors import RequestError
from luthier.serve.services import Services
from luthier.serve.settings import ServeSettings
from luthier.serve.speech.base import RATE, Transcript, Word

BASE = "toy:llama"
CHAT_MODELS = [
    ServedModel("one/sft", "chat", BASE, Path("one"), "sft", None, Path("one/stages/sft/adapter"), ("text", "image")),
    ServedModel(
        "one/sft@step-000005", "chat", BASE, Path("one"), "sft", 5, Path("one/stages/sft/checkpoints/step-000005")
    ),
    ServedModel("two/sft", "chat", BASE, Path("two"), "sft", None, Path("two/stages/sft/adapter")),
    ServedModel(f"base:{BASE}", "chat", BASE),
]
"""Two runs, a checkpoint of the first, their base. Only the first reads pictures."""

VERDICT_MODELS = [
    ServedModel(f"speaking/{stage}", "verdict", "toy:phi4-multimodal", Path("speaking"), stage, reads=("text", "audio"))
    for stage in ("1764", "1964")
]


@dataclass
class FakeChat:
    """Answers word by word. `delay`: seconds before each word. A question that holds "long" is answered with 200 words,
    one that holds "break" fails after two words as an engine with a fault would, one that holds "refuse" is refused."""

    delay: float = 0.0
    served: Sequence[ServedModel] = tuple(CHAT_MODELS)
    asked: list[ChatRequest] = field(default_factory=list)
    """Every request, in the order in which they were begun."""
    cancelled: int = 0
    most_at_once: int = 0
    closed: bool = False
    _working: int = 0
    _lock: Any = field(default_factory=threading.Lock)

    def models(self) -> list[ServedModel]:
        return list(self.served)

    @staticmethod
    def answer(model: str, question: str) -> str:
        """What this model says to this last user turn, when nothing cuts it short."""
        if "long" in question:
            return " ".join([model, *(f"w{number}" for number in range(199))])
        return f"{model} heard: {question} — ça va?"

    def stream(self, request: ChatRequest, cancel: Event | None = None) -> Iterator[Piece]:
        model = next((model for model in self.served if model.id == request.model), None)
        if model is None:
            raise RequestError(f"no model {request.model}", "ask for one of the models listed")
        kinds = {part.type for message in request.messages for part in message.content}
        if not kinds <= {"text", *model.reads}:
            raise RequestError(
                f"{model.id} does not read {', '.join(sorted(kinds - {'text', *model.reads}))}", "drop it"
            )
        question = request.messages[-1].text
        if "refuse" in question:
            raise RequestError("the question is too long for this model", "shorten it")
        return self._pieces(request, question, cancel or Event())

    def _pieces(self, request: ChatRequest, question: str, cancel: Event) -> Iterator[Piece]:
        with self._lock:
            self.asked.append(request)
            self._working += 1
            self.most_at_once = max(self.most_at_once, self._working)
        words = self.answer(request.model, question).split(" ")
        kept = words[: request.sampling.max_new_tokens]
        prompt = sum(len(message.text.split()) for message in request.messages)
        written = 0
        try:
            for place, word in enumerate(kept):
                if cancel.wait(self.delay) if self.delay else cancel.is_set():
                    self.cancelled += 1
                    yield Piece("", "cancelled", prompt, written)
                    return
                if "break" in question and place == 2:
                    raise ValueError("a fault inside the engine, /secret/path")
                written += 1
                yield Piece(word if place == 0 else " " + word)
            yield Piece("", "stop" if len(kept) == len(words) else "length", prompt, written)
        finally:
            with self._lock:
                self._working -= 1

    def close(self) -> None:
        self.closed = True


@dataclass
class FakeVerdict:
    """Louder is better: p_pass is the peak of the recording. The calibrated one is drawn towards one half,
    0.5 + 0.8 (p - 0.5), and borderline from 0.4 to 0.6."""

    delay: float = 0.0
    served: Sequence[ServedModel] = tuple(VERDICT_MODELS)
    asked: list[tuple[str, list[str], str]] = field(default_factory=list)
    """Model, names of the recordings, question."""
    closed: bool = False

    def models(self) -> list[ServedModel]:
        return list(self.served)

    def judge(self, model: str, recordings: Sequence[Recording], question: str) -> list[Verdict]:
        if model not in [served.id for served in self.served]:
            raise RequestError(f"no model {model}", "ask for one of the models listed")
        self.asked.append((model, [recording.name for recording in recordings], question))
        time.sleep(self.delay * len(recordings))
        return [self.verdict(recording) for recording in recordings]

    @staticmethod
    def verdict(recording: Recording) -> Verdict:
        p = float(np.abs(recording.wave).max(initial=0.0))
        calibrated = 0.5 + 0.8 * (p - 0.5)
        return Verdict(
            recording.name,
            passed=p > 0.5,
            p_pass=p,
            p_pass_calibrated=calibrated,
            event="panel",
            p_panel=p,
            p_rater=calibrated,
            grade_mean=1.0 + 4.0 * p,
            borderline=0.4 <= calibrated <= 0.6,
        )

    def zone(self, model: str) -> Zone | None:
        return Zone(0.4, 0.6, 12) if model == self.served[0].id else None

    def close(self) -> None:
        self.closed = True


@dataclass
class FakeEars:
    """Hears the same sentence in every recording that is not silent; its words share the time evenly."""

    sentence: str = "what is the capital of norway"
    delay: float = 0.0
    name: str = "fake-ears"
    heard: list[float] = field(default_factory=list)
    """Seconds of each recording."""
    closed: bool = False

    def transcribe(self, wave_L: NDArray[np.float32]) -> Transcript:
        seconds = len(wave_L) / RATE
        if seconds > 60:
            raise RequestError("the recording is longer than 60 s", "give a shorter one")
        time.sleep(self.delay)
        self.heard.append(seconds)
        if np.abs(wave_L).max(initial=0.0) < 0.01:
            return Transcript("", seconds, "en", self.name, note="nobody spoke: the recording is silent")
        texts = self.sentence.split()
        each = seconds / len(texts)
        words = tuple(Word(text, place * each, (place + 1) * each, 0.9) for place, text in enumerate(texts))
        return Transcript(self.sentence, seconds, "en", self.name, words)

    def close(self) -> None:
        self.closed = True


def fake_services(folder: Path, settings: ServeSettings | None = None, **parts: Any) -> Services:
    """A server's parts over stand-ins, with the real queue, uploads and store (in `folder`). `parts` replaces any."""
    from luthier.serve.store import Store
    from luthier.serve.uploads import Uploads
    from luthier.serve.waiting import Waiting

    settings = replace(settings or ServeSettings(), store=folder / "serve.sqlite")
    assert settings.store is not None
    makers = {
        "chat": FakeChat,
        "verdict": FakeVerdict,
        "speech": FakeEars,
        "uploads": lambda: Uploads(settings.limits),
        "waiting": lambda: Waiting(settings.queue_size, settings.per_session),
        "store": lambda: Store(settings.store),
    }
    made = {name: parts[name] if name in parts else make() for name, make in makers.items()}
    return Services(settings=settings, **made)


def tone(seconds: float = 1.0, peak: float = 0.7, hertz: float = 440.0) -> NDArray[np.float32]:
    """Float32 mono at 16 kHz whose peak is `peak`: what FakeVerdict takes for p_pass."""
    if peak == 0:
        return np.zeros(round(seconds * RATE), np.float32)
    wave = np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)
    return (peak * wave / np.abs(wave).max()).astype(np.float32)


def wav(wave_L: NDArray[np.float32], rate: int = RATE) -> bytes:
    """The bytes of a 16-bit WAV file."""
    import io

    import soundfile

    out = io.BytesIO()
    soundfile.write(out, wave_L, rate, format="WAV", subtype="PCM_16")
    return out.getvalue()


def png(width: int = 8, height: int = 8, colour: str = "red") -> bytes:
    """The bytes of a PNG of one colour."""
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(out, "PNG")
    return out.getvalue()
