"""Reads an exam from any file or hub table: each record an item, or left out with its reason, and nothing guessed.

Knows the order of the work: records, labels, shape, options, media, answers; refuses to know how each is done. Items
are never shuffled. An exam of which more than 5 % is unusable is refused, as its scores would be another exam's.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from luthier.data.building.context import Context
from luthier.data.exams.answers import MOST_WRONG, is_missing, read_answers
from luthier.data.exams.exam import Exam, ExamItem, exam_digest
from luthier.data.exams.labels import read_labels
from luthier.data.exams.review import notes_of
from luthier.data.readers import Reading, open_source
from luthier.data.reading.lines import Broken, Record
from luthier.data.shapes.asked import IDS, Asked, content_name, named, own_group, own_id, shaped, told_apart, unprefixed
from luthier.data.shapes.askedmedia import check_medium, media_cells, media_data
from luthier.data.shapes.parts import Unusable, check_text
from luthier.errors import DataError, MediaError
from luthier.recipe_data import Source
from luthier.recipe_exam import ANSWER_BASES
from luthier.schema import Drop, Part

_PLACEHOLDER = re.compile("<(image|audio|video)>")


@dataclass
class _Entry:
    """A record on its way to an item; one that has a reason stays behind."""

    origin: str
    own_id: str = ""
    group: str = ""
    asked: Asked | None = None
    media: tuple[Part, ...] = ()
    name: str = ""
    place: int = -1
    """Of the right option."""
    reason: str = ""
    detail: str = ""

    def leave(self, reason: str, detail: str) -> None:
        self.reason, self.detail = self.reason or reason, self.detail or detail


@dataclass
class _Work:
    """A file's entries in its order, and the bytes of their media."""

    where: str
    entries: list[_Entry] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)

    @property
    def sound(self) -> list[tuple[_Entry, Asked]]:
        return [(entry, entry.asked) for entry in self.entries if not entry.reason and entry.asked is not None]


def read_exam(source: Source | Path, name: str, labels: str | Path = "", answers: str = "") -> Exam:
    """An exam from a file or a recipe's source, whatever shape it has.

    `labels` names a second file with the answers; `answers` says how they are counted (0, 1, letter or text), "" to
    find out from the whole file. Raises SourceError for files that are missing or torn; DataError where the count is
    ambiguous or contradicts the shape, where over 5 % of the items are unusable, or none is left.
    """
    if answers not in ANSWER_BASES:
        raise DataError(f"exam {name}: answers are counted {answers!r}", f"one of {', '.join(ANSWER_BASES[1:])}")
    given = source if isinstance(source, Source) else Source(name=name, path=str(source))
    reading = open_source(given, IDS)
    work = _collected(reading, f"exam {name} ({given.path or given.hub})")
    if labels:
        _attach(work, Path(labels))
    _unprefix(work)
    shape = _one_shape(work)
    _check_options(work)
    base = _answer(work, answers)
    items = [_item(entry, asked) for entry, asked in work.sound]
    bad = [Drop(name, entry.origin, entry.reason, entry.detail) for entry in work.entries if entry.reason]
    blobs = {part.media: work.blobs[part.media] for item in items for part in item.media if part.media}
    return Exam(name, items, exam_digest(items), shape, base, bad, notes_of(items, bad), blobs)


def _collected(reading: Reading, where: str) -> _Work:
    work = _Work(where)
    context = Context(reading.source, folder=reading.folder, trusted=reading.trusted)
    for origin, record in reading:
        entry = _Entry(origin)
        work.entries.append(entry)
        if isinstance(record, Broken):
            entry.leave(record.reason, record.detail)
            continue
        record = named(record, reading.source.columns)
        entry.own_id, entry.group, entry.asked = own_id(record), own_group(record), shaped(record)
        if entry.asked is None:
            entry.leave("no_question", f"no question among {', '.join(map(str, record))}"[:300])
            continue
        entry.name = entry.own_id or content_name(entry.asked)
        try:
            _take_media(entry, entry.asked, record, context, work.blobs)
            for text in (entry.asked.question, entry.asked.before, *entry.asked.options):
                check_text(text, "the item")
        except (MediaError, Unusable) as error:
            entry.leave(error.reason, error.detail)
        if not (entry.asked.words or entry.media):
            entry.leave("no_text", "its question has no word")
    kept = [entry for entry in work.entries if entry.asked is not None]
    names = told_apart([entry.name for entry in kept], [entry.origin for entry in kept])
    for entry, name in zip(kept, names, strict=True):
        entry.name = name
    return work


def _take_media(entry: _Entry, asked: Asked, record: Record, context: Context, blobs: dict[str, bytes]) -> None:
    """The parts of a record's media, each decoded once; placeholders in the question make way for them."""
    parts = []
    for kind, cell in media_cells(record):
        data = media_data(cell, context)
        reference = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if reference not in blobs:
            check_medium(kind, data, context)
            blobs[reference] = data
        parts.append(Part(kind, None, reference))
    if parts:
        entry.media = tuple(parts)
        entry.name = entry.own_id or content_name(asked, [part.media or "" for part in parts])
        entry.asked = replace(asked, question=_PLACEHOLDER.sub("", asked.question).strip())


def _attach(work: _Work, path: Path) -> None:
    """Answers from a second file; an exam that has its own is refused, as one of the two would be lost."""
    own = next((entry for entry, asked in work.sound if not is_missing(asked)), None)
    if own is not None:
        raise DataError(
            f"{work.where}: {own.origin} has an answer of its own, and {path} gives labels too",
            "leave `labels` out, or take the answers out of the exam's file",
        )
    cells = read_labels(path).for_items([entry.own_id for entry in work.entries])
    for entry, cell in zip(work.entries, cells, strict=True):
        if entry.asked is not None:
            entry.asked = replace(entry.asked, key=cell)


def _unprefix(work: _Work) -> None:
    sound = work.sound
    for (entry, _), bare in zip(sound, unprefixed([asked for _, asked in sound]), strict=True):
        entry.asked = bare


def _one_shape(work: _Work) -> str:
    """The shape of most records; those of another are left out, as they may count their answers in another way."""
    counts = Counter(asked.shape for _, asked in work.sound)
    if not counts:
        _refuse_many(work)
    shape = counts.most_common(1)[0][0]
    for entry, asked in work.sound:
        if asked.shape != shape:
            entry.leave("other_shape", f"a record of the shape {asked.shape} in a file of {shape}")
    return shape


def _check_options(work: _Work) -> None:
    for entry, asked in work.sound:
        options = asked.options
        twice = next((option for place, option in enumerate(options) if option in options[:place]), None)
        if len(options) < 2:
            entry.leave("few_options", f"{len(options)} options")
        elif "" in options:
            entry.leave("empty_option", f"option {options.index('') + 1} of {len(options)} is empty")
        elif twice is not None:
            entry.leave("equal_options", f"two options are {twice[:80]!r}")


def _answer(work: _Work, said: str) -> str:
    """Give each entry the place of its right option; how the file counts them."""
    for entry, asked in work.sound:
        if is_missing(asked):
            entry.leave("no_answer", f"the answer is {asked.key!r}")
    _refuse_many(work)
    sound = work.sound
    read = read_answers([asked for _, asked in sound], [entry.origin for entry, _ in sound], said, work.where)
    for (entry, asked), place in zip(sound, read.places, strict=True):
        if place is None:
            entry.leave("answer_outside", f"{str(asked.key)[:80]!r} is none of {len(asked.options)} options")
        else:
            entry.place = place
    _refuse_many(work)
    return read.base


def _item(entry: _Entry, asked: Asked) -> ExamItem:
    return ExamItem(
        entry.name, asked.words, asked.options, entry.place, entry.group, asked.before, entry.media, entry.origin
    )


def _refuse_many(work: _Work) -> None:
    """Raise DataError where no item is left, or more than 5 % are left out."""
    bad = [entry for entry in work.entries if entry.reason]
    total = len(work.entries)
    if total and len(bad) <= MOST_WRONG * total:
        return
    if not total:
        raise DataError(f"{work.where}: there are no items in it", "give a file with questions, options and answers")
    reasons = Counter(entry.reason for entry in bad)
    counted = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
    first = bad[0]
    raise DataError(
        f"{work.where}: {len(bad):,} of {total:,} items cannot be used ({counted}), and at most {MOST_WRONG:.0%} may "
        f"be so. The first: {first.origin}: {first.reason}: {first.detail}",
        _mend(reasons),
    )


def _mend(reasons: Iterable[str]) -> str:
    common = next(iter(reasons))
    if common == "no_answer":
        return "name the file that has the answers: labels: FILE in a recipe, --labels FILE for luthier exam"
    if common in ("no_question", "few_options"):
        return "each item needs a question, two or more options and an answer: docs/exams.md shows the shapes"
    return "mend these items, or take them out of the file"
