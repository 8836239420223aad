"""What an exam is once it is read: items with options and the right one, and what is known of the whole.

Knows content, its digest and how it is written down; refuses to know files, shapes and how a model is asked. Options
are counted from 0 in the file's order, and nothing is ever shuffled.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.exam_records import ExamRecord
from luthier.files import write_jsonl
from luthier.schema import Drop, Part, canonical


@dataclass(frozen=True, slots=True)
class ExamItem:
    """One question: its options in the file's order, and which of them is right, counted from 0."""

    id: str
    question: str
    """A WinoGrande sentence keeps its `_`."""
    options: tuple[str, ...]
    answer: int
    group: str = ""
    """Items of one text, speaker or family of questions; "" where the file says nothing of it."""
    before: str = ""
    """The passage that stands before the question."""
    media: tuple[Part, ...] = ()
    """Pictures, then sound, then videos, by `sha256:` reference into `Exam.blobs`."""
    origin: str = ""

    def content(self) -> list[Any]:
        """All that can change a model's answer or its mark, as JSON values."""
        return [self.question, self.before, list(self.options), self.answer, [part.to_json() for part in self.media]]

    def to_json(self) -> dict[str, Any]:
        """One line of items.jsonl; empty keys are left out."""
        found = {
            "id": self.id,
            "question": self.question,
            "before": self.before,
            "options": list(self.options),
            "answer": self.answer,
            "group": self.group,
            "media": [part.to_json() for part in self.media],
        }
        return {key: value for key, value in found.items() if value or key not in ("before", "group", "media")}


@dataclass(frozen=True)
class Exam:
    """The items of an exam in the file's order, and what could not be read; the two add up to what was there."""

    name: str
    items: list[ExamItem]
    digest: str
    """sha256 of the items' content, whatever the file's format: see `exam_digest`."""
    shape: str
    """piqa, winogrande, copa, boolq, arc, mmlu, options, letters, ..."""
    answers: str
    """How the file counts its answers: 0, 1, letter or text."""
    unreadable: list[Drop] = field(default_factory=list)
    """Items left out, each with its reason."""
    notes: list[str] = field(default_factory=list)
    """Sentences that a reader of scores should know."""
    blobs: Mapping[str, bytes] = field(default_factory=dict)
    """The original bytes of the media, by `sha256:` reference."""

    @property
    def chance(self) -> float:
        """Expected accuracy of guessing: the mean of 1 / options."""
        return sum(1 / len(item.options) for item in self.items) / len(self.items)

    @property
    def majority(self) -> float:
        """Accuracy of always choosing the place that is right most often."""
        return Counter(item.answer for item in self.items).most_common(1)[0][1] / len(self.items)


def exam_digest(items: Iterable[ExamItem]) -> str:
    """sha256 of questions, passages, options, answers and media, in order; ids, groups and origins are no part."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(canonical(item.content()).encode() + b"\n")
    return digest.hexdigest()


def exam_record(exam: Exam, settings: dict[str, Any]) -> ExamRecord:
    """What exam.json says of an exam that is put as `settings` (the dict of ExamSettings) say."""
    return ExamRecord(
        name=exam.name,
        digest=exam.digest,
        shape=exam.shape,
        answers=exam.answers,
        items=len(exam.items),
        options=sorted({len(item.options) for item in exam.items}),
        chance=exam.chance,
        majority=exam.majority,
        notes=exam.notes,
        unreadable=dict(Counter(drop.reason for drop in exam.unreadable)),
        settings=settings,
    )


def write_items(exam: Exam, path: Path) -> None:
    """Write items.jsonl: `id question before options answer group media` of every item. Raises DiskError."""
    write_jsonl(path, (item.to_json() for item in exam.items))
