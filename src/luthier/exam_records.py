"""What an examination leaves on disk: the records that tables, reports and comparisons read."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class ExamAsked:
    """How one item fared under one wording and order of its options. Lists are in the file's order of options."""

    prompt: str
    """The wording: question, instruction or exam."""
    reversed: bool
    """Whether the options stood in reverse order."""
    logprobs: list[float]
    """Log-likelihood of each option in nats, normalised as the settings say; empty where the answer was written."""
    choice: int
    """The option chosen; -1 where what was written names none."""
    text: str = ""
    """What the model wrote (method generate)."""


@dataclass
class ExamPrediction:
    """One line of predictions.jsonl: one item as the first wording and the file's own order put it.

    `logprobs` are in nats, one an option, in the file's order; `answer` and `choice` count options from 0, `choice` is
    -1 where a written answer names none; ties go to the first. `more` holds the other orders and wordings.
    """

    id: str
    answer: int
    choice: int
    logprobs: list[float]
    correct: bool
    group: str = ""
    text: str = ""
    more: list[ExamAsked] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        found = asdict(self)
        return {key: value for key, value in found.items() if value or key not in ("group", "text", "more")}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ExamPrediction:
        more = [ExamAsked(**asked) for asked in value.get("more", [])]
        return cls(**{**value, "more": more})


@dataclass
class ExamRecord:
    """exam.json: what was asked. Written once for an exam, whoever sits it."""

    name: str
    digest: str
    """sha256 of the exam's content: questions, options, answers, media."""
    shape: str
    """piqa, winogrande, copa, boolq, arc, mmlu, options, letters, ..."""
    answers: str
    """How the file counts its answers: 0, 1, letter or text."""
    items: int
    options: list[int]
    """The numbers of options that occur."""
    chance: float
    """Expected accuracy of guessing: the mean of 1 / options."""
    majority: float
    """Accuracy of always choosing the place that is right most often."""
    notes: list[str]
    """What a reader should know: duplicates, answer balance, option lengths, unreadable items."""
    unreadable: dict[str, int]
    """Items left out, by reason."""
    settings: dict[str, Any]
    overlap: list[str] = field(default_factory=list)
    """Ids of items that the training table touches."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class SatRecord:
    """candidate.json: who sat an exam, and what that cost. Written last of a candidate's folder."""

    name: str
    base: str
    base_sha256: str
    adapter: str
    adapter_sha256: str
    """"" for the base alone."""
    step: int | None
    seconds: float
    items_per_second: float
    peak_memory: int
    """Bytes: of the GPU where there is one, else of the process."""
    key: str
    """Digest of base, adapter, exam, settings, tokenizer and template: equal keys mean equal answers."""
    prompt_tokens: int = 0
    """Tokens of all that was asked, each as often as it was asked."""
    read_tokens: int = 0
    """Tokens that the model read, a shared beginning once."""
    same_as_base: bool = False
    """Alarm: the adapter moves no answer's log-likelihood."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
