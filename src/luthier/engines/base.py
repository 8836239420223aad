"""What every engine is to those who ask it: models by id, an answer in pieces, a verdict with its probability.

Knows no torch, no HTTP and no page. An engine may be asked from any thread and answers one request at a time; whoever
needs a queue puts one in front of it (`serve/waiting.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from luthier.data.mediasource import Film
from luthier.schema import Message


@dataclass(frozen=True)
class ServedModel:
    """One model that can be asked. The id of a stage's final adapter is RUN/STAGE, of a checkpoint
    RUN/STAGE@step-000050, of a base alone base:NAME; RUN is the name of the run's folder."""

    id: str
    kind: Literal["chat", "verdict"]
    base: str
    run: Path | None = None
    stage: str = ""
    step: int | None = None
    adapter: Path | None = None
    """The PEFT folder; None for a base alone, or where the file holds all (GGUF)."""
    reads: tuple[str, ...] = ("text",)
    """What a question may hold: text, image, audio."""


@dataclass(frozen=True)
class Sampling:
    """How an answer is written. Temperature 0 takes the likeliest token, always."""

    max_new_tokens: int = 512
    temperature: float = 0.7
    top_p: float = 0.9
    top_k: int = 0
    seed: int | None = None
    """None: another answer each time."""
    stop: tuple[str, ...] = ()
    """Texts before which an answer ends, besides the model's own stop tokens."""


@dataclass(frozen=True)
class ChatRequest:
    """A conversation that ends with the user's turn. `media` holds the decoded pictures and sound that its parts name
    by reference: a PIL image, or float32 mono at 16 kHz."""

    model: str
    messages: Sequence[Message]
    sampling: Sampling = Sampling()
    media: Mapping[str, Any] = field(default_factory=dict)


Finish = Literal["", "stop", "length", "cancelled"]
"""Why an answer ended: by itself or before a stop text, at its longest, or because nobody wants it any more."""


@dataclass(frozen=True)
class Piece:
    """A part of an answer. The last piece, and only it, has a `finish`; its counts are of the whole request."""

    text: str
    finish: Finish = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0


class ChatEngine(Protocol):
    """Answers chats."""

    def models(self) -> list[ServedModel]:
        """Those that can be asked, in the order in which they are shown."""
        ...

    def stream(self, request: ChatRequest, cancel: Event | None = None) -> Iterator[Piece]:
        """The answer as it is written; it ends soon after `cancel` is set.

        Raises RequestError for a model that is not there, for a question that its template cannot write or that is too
        long, and for media that it does not read: before the first piece.
        """
        ...

    def close(self) -> None:
        """Give memory and child processes back."""
        ...


@dataclass(frozen=True)
class Recording:
    """An answer to be judged: float32 mono at 16 kHz."""

    name: str
    wave: NDArray[np.float32]


@dataclass(frozen=True)
class Sight:
    """A picture (upright, RGB) or video to be judged."""

    name: str
    medium: Image.Image | Film


@dataclass(frozen=True)
class Verdict:
    """What a verdict model says of one recording or sight; `error` instead, where it could not be judged.

    `passed` goes by p_pass above 0.5. `borderline`: the calibrated probability lies in the model's `Zone`.
    """

    name: str
    passed: bool | None = None
    p_pass: float | None = None
    p_pass_calibrated: float | None = None
    event: str = ""
    p_panel: float | None = None
    p_rater: float | None = None
    grade_mean: float | None = None
    borderline: bool | None = None
    error: str = ""


@dataclass(frozen=True)
class Zone:
    """Where a stage's calibrated probabilities of borderline answers lie (those graded half a step below the pass mark
    and at it): 10th to 90th percentile over its held-out items, of which `n` are borderline."""

    low: float
    high: float
    n: int

    def holds(self, p: float) -> bool:
        """Whether a calibrated probability lies in it."""
        return self.low <= p <= self.high


class VerdictEngine(Protocol):
    """Judges recordings, pictures and videos."""

    def models(self) -> list[ServedModel]: ...

    def judge(self, model: str, shown: Sequence[Recording | Sight], question: str) -> list[Verdict]:
        """One verdict each, in order. Raises RequestError for a model that is not there."""
        ...

    def zone(self, model: str) -> Zone | None:
        """None where no held-out item was borderline."""
        ...

    def close(self) -> None: ...
