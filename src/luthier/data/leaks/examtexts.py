"""Reads what an audit compares with: an exam's questions and options in the shapes exams come in, or any rows.

Knows exams through `shapes.asked`, chat formats through their adapters, and tables; refuses to know answers (which
option is right is never read) and how texts are compared. What cannot be read is counted with its reason.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from luthier.data import formats
from luthier.data.building.context import Context
from luthier.data.building.mixture import MANIFEST
from luthier.data.readers import REASONS as READING_REASONS
from luthier.data.readers import Broken, Reading, Record, columns_seen, open_source, peek
from luthier.data.shapes.asked import (
    IDS,
    Asked,
    content_name,
    named,
    own_group,
    own_id,
    shaped,
    told_apart,
    unprefixed,
)
from luthier.data.shapes.askedmedia import media_cells, media_data
from luthier.data.table import iter_rows
from luthier.errors import DataError, MediaError
from luthier.recipe_data import Source
from luthier.schema import Drop, Row

REASONS = (*READING_REASONS, "no_question", "no_text")
"""Why an item could not be read; rows of a chat format also have their format's reasons."""
_DERIVED = re.compile(r"q-[0-9a-f]{16}")
_SOURCE = "against"


@dataclass(frozen=True, slots=True)
class Item:
    """One item of an exam, or one row of a table that is compared with.

    `text` is all of it, the passage, the question and the options on lines of their own; `question` the question
    alone; `options` what there is to choose from; `media` its `sha256:` references.
    """

    id: str
    origin: str
    text: str
    question: str
    options: tuple[str, ...] = ()
    group: str = ""
    media: tuple[str, ...] = ()


@dataclass(frozen=True)
class Exam:
    """The readable items of a file or a table, and what could not be read; the two add up to what was there."""

    items: list[Item]
    unreadable: list[Drop] = field(default_factory=list)
    read_as: str = "exam"


def exam_items(against: Path | Source, split: str = "") -> Exam:
    """The items of an exam file, a file of rows in any format, or a table folder (there of one split, or of all).

    Raises SourceError for a file that is missing or torn, DataError where nothing in it can be read.
    """
    where = against if isinstance(against, Path) else against.path or against.hub
    if isinstance(against, Path) and (against / MANIFEST).is_file():
        rows = iter_rows(against, {"split": split} if split else None)
        exam = Exam([_row_item(found.row) for found in rows], read_as="table")
    else:
        exam = _file_items(against if isinstance(against, Source) else Source(name=_SOURCE, path=str(against)))
    if not exam.items:
        reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(d.reason for d in exam.unreadable).items())
        raise DataError(
            f"{where}: none of its items can be read ({reasons or 'there are none'})",
            "give JSON with a question and options, rows of a chat format, or a table",
        )
    names = told_apart([item.id for item in exam.items], [item.origin for item in exam.items])
    return replace(exam, items=[replace(item, id=name) for item, name in zip(exam.items, names, strict=True)])


def given_group(group: str, identity: str) -> str:
    """A row's group where its source gave one; "" for a group that the table made up for a row without one.

    Such a group only says that two rows begin alike, and template siblings do.
    """
    return "" if group == identity or _DERIVED.fullmatch(group) else group


def _file_items(source: Source) -> Exam:
    reading = open_source(source, IDS)
    first = peek(reading)
    if first and any(shaped(named(record, source.columns)) for record in first):
        return _exam_records(reading)
    name = formats.detect(first, {}) if first else "messages"
    adapt = formats.adapter(name, Context(source, folder=reading.folder, found=columns_seen(first)))
    items: list[Item] = []
    bad: list[Drop] = []
    for origin, record in reading:
        if isinstance(record, Broken):
            bad.append(Drop(_SOURCE, origin, record.reason, record.detail))
            continue
        made = adapt(origin, record)
        if isinstance(made, Drop):
            bad.append(made)
        elif not (made.row.media or any(message.text.strip() for message in made.row.messages)):
            bad.append(Drop(_SOURCE, origin, "no_text", "none of its turns has a word"))
        else:
            items.append(replace(_row_item(made.row), id=own_id(record) or origin, origin=origin))
    return Exam(items, bad, name)


def _exam_records(reading: Reading) -> Exam:
    context = Context(reading.source, folder=reading.folder, trusted=reading.trusted)
    items: list[Item] = []
    found: list[Asked] = []
    bad: list[Drop] = []
    for origin, record in reading:
        if isinstance(record, Broken):
            bad.append(Drop(_SOURCE, origin, record.reason, record.detail))
            continue
        record = named(record, reading.source.columns)
        asked = shaped(record)
        if asked is None:
            detail = f"no question among {', '.join(map(str, record))}"[:300]
            bad.append(Drop(_SOURCE, origin, "no_question", detail))
            continue
        media = _media(record, context)
        if not media and not re.search(r"\w", _text(asked)):
            bad.append(Drop(_SOURCE, origin, "no_text", "its question has no word"))
            continue
        name = own_id(record) or content_name(asked, media)
        items.append(Item(name, origin, "", asked.question, (), own_group(record), media))
        found.append(asked)
    whole = zip(items, unprefixed(found), strict=True)
    return Exam([replace(item, text=_text(asked), options=_options(asked)) for item, asked in whole], bad)


def _text(asked: Asked) -> str:
    return "\n".join(part for part in (asked.before, asked.question, *_options(asked)) if part)


def _options(asked: Asked) -> tuple[str, ...]:
    """The options that are in the file: yes and no are not."""
    return () if asked.shape == "boolq" else asked.options


def _row_item(row: Row) -> Item:
    turns = [message.text for message in row.messages if message.role != "system" and message.text]
    if row.target.text:
        turns.append(row.target.text)
    question = next((message.text for message in row.messages if message.role == "user"), "")
    origin = f"{row.provenance.source}: {row.provenance.origin}"
    return Item(row.id, origin, "\n".join(turns), question, (), given_group(row.group, row.id), row.media)


def _media(record: Record, context: Context) -> tuple[str, ...]:
    """References to the media of a record; what cannot be read is left out, and its item's text still compared."""
    found: list[str] = []
    for _, cell in media_cells(record):
        try:
            found.append(f"sha256:{hashlib.sha256(media_data(cell, context)).hexdigest()}")
        except MediaError:
            continue
    return tuple(found)
