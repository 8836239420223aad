"""Reads what an audit compares with: an exam's questions and options in the shapes exams come in, or any rows.

Knows the shapes of public exams, chat formats through their adapters, and tables; refuses to know answers (which
option is right is never read) and how texts are compared. What cannot be read is counted with its reason.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import orjson

from luthier.data import formats
from luthier.data.building.context import Context, Record
from luthier.data.building.mixture import MANIFEST
from luthier.data.readers import REASONS as READING_REASONS
from luthier.data.readers import Broken, columns_seen, open_source, peek
from luthier.data.table import iter_rows
from luthier.errors import DataError
from luthier.recipe_data import Source
from luthier.schema import Drop, Row

REASONS = (*READING_REASONS, "no_question", "no_text")
"""Why an item could not be read; rows of a chat format also have their format's reasons."""
IDS = ("id", "item_id", "question_id", "qid", "qID", "idx", "ind")
GROUPS = ("group", "group_id", "speaker", "speaker_id", "document_id", "doc_id", "passage_id", "thread_id", "video_id")
PASSAGES = ("passage", "context", "article", "support", "paragraph")
MEDIA = ("image", "images", "audio", "video")
LETTERS = "ABCDEFGHIJ"
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


def exam_items(path: Path, split: str = "") -> Exam:
    """The items of an exam file, a file of rows in any format, or a table folder (there of one split, or of all).

    Raises SourceError for a file that is missing or torn, DataError where nothing in it can be read.
    """
    if (path / MANIFEST).is_file():
        where = {"split": split} if split else None
        items = [_row_item(found.row) for found in iter_rows(path, where)]
        exam = Exam(items, read_as="table")
    else:
        exam = _file_items(path)
    if not exam.items:
        reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(d.reason for d in exam.unreadable).items())
        raise DataError(
            f"{path}: none of its items can be read ({reasons or 'there are none'})",
            "give JSON with a question and options, rows of a chat format, or a table",
        )
    return replace(exam, items=_named(exam.items))


def given_group(group: str, identity: str) -> str:
    """A row's group where its source gave one; "" for a group that the table made up for a row without one.

    Such a group only says that two rows begin alike, and template siblings do.
    """
    return "" if group == identity or _DERIVED.fullmatch(group) else group


def _file_items(path: Path) -> Exam:
    source = Source(name=_SOURCE, path=str(path))
    reading = open_source(source, IDS)
    first = peek(reading)
    if first and any(_shaped(record) for record in first):
        return _exam_records(reading, reading.folder)
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
            items.append(replace(_row_item(made.row), id=_label(record, IDS) or origin, origin=origin))
    return Exam(items, bad, name)


def _exam_records(reading: Iterable[tuple[str, Record | Broken]], folder: Path) -> Exam:
    items: list[Item] = []
    bad: list[Drop] = []
    for origin, record in reading:
        if isinstance(record, Broken):
            bad.append(Drop(_SOURCE, origin, record.reason, record.detail))
            continue
        shaped = _shaped(record)
        if shaped is None:
            detail = f"no question among {', '.join(map(str, record))}"[:300]
            bad.append(Drop(_SOURCE, origin, "no_question", detail))
            continue
        before, question, options = shaped
        text = "\n".join(part for part in (before, question, *options) if part)
        media = _media(record, folder)
        if not re.search(r"\w", text) and not media:
            bad.append(Drop(_SOURCE, origin, "no_text", "its question has no word"))
            continue
        identity = _label(record, IDS) or origin
        items.append(Item(identity, origin, text, question, options, _label(record, GROUPS), media))
    return Exam(items, bad)


def _row_item(row: Row) -> Item:
    turns = [message.text for message in row.messages if message.role != "system" and message.text]
    if row.target.text:
        turns.append(row.target.text)
    question = next((message.text for message in row.messages if message.role == "user"), "")
    origin = f"{row.provenance.source}: {row.provenance.origin}"
    return Item(row.id, origin, "\n".join(turns), question, (), given_group(row.group, row.id), row.media)


def _named(items: list[Item]) -> list[Item]:
    """Items with ids of their own: one that comes twice is told apart by its place."""
    counts = Counter(item.id for item in items)
    return [replace(item, id=f"{item.id} ({item.origin})") if counts[item.id] > 1 else item for item in items]


def _shaped(record: Record) -> tuple[str, str, tuple[str, ...]] | None:
    """(what stands before the question, the question, options) of an exam's record; None where it is none."""
    if "goal" in record and "sol1" in record:  # PIQA
        return _found("", record["goal"], _columns(record, "sol"))
    if "sentence" in record and "option1" in record:  # WinoGrande
        return _found("", record["sentence"], _columns(record, "option"))
    if "premise" in record and "choice1" in record:  # COPA, whose question is only "cause" or "effect"
        return _found("", record["premise"], _columns(record, "choice"))
    if "ctx" in record and "endings" in record:  # HellaSwag
        return _found("", record["ctx"], _options(record["endings"]))
    question = record.get("question", record.get("stem"))
    if isinstance(question, dict):  # ARC as it was first published: the choices lie inside the question
        return _found("", question.get("stem"), _options(question.get("choices")))
    if "messages" in record or "conversations" in record:
        return None
    before = "\n".join(record[name] for name in PASSAGES if isinstance(record.get(name), str))
    options = next((_options(record[name]) for name in ("options", "choices") if name in record), ())
    if not options and "A" in record and "B" in record:
        options = _options({letter: record[letter] for letter in LETTERS if letter in record})
    return _found(before, question, options or _columns(record, "option") or _columns(record, "choice"))


def _found(before: str, question: object, options: tuple[str, ...]) -> tuple[str, str, tuple[str, ...]] | None:
    return (before.strip(), question.strip(), options) if isinstance(question, str) else None


def _columns(record: Record, stem: str) -> tuple[str, ...]:
    """The values of `stem1`, `stem2` and so on."""
    return tuple(str(record[f"{stem}{n}"]).strip() for n in range(10) if record.get(f"{stem}{n}") is not None)


def _options(value: object) -> tuple[str, ...]:
    """Options from a list, from lists under `text` and `label`, from records with a `text`, or by letter."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):  # a csv cell
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            return (str(value).strip(),)
    if isinstance(value, Mapping):
        inside = value.get("text")
        return _options(inside if isinstance(inside, list) else list(value.values()))
    if isinstance(value, list | tuple):
        cells = (one.get("text", "") if isinstance(one, Mapping) else one for one in value)
        return tuple(str(cell).strip() for cell in cells if cell is not None)
    return (str(value).strip(),) if value not in (None, "") else ()


def _label(record: Record, names: Iterable[str]) -> str:
    for name in names:
        value = record.get(name)
        if isinstance(value, str) and value.strip():
            return value.strip()
        if type(value) is int:
            return str(value)
    return ""


def _media(record: Record, folder: Path) -> tuple[str, ...]:
    """References to the media of a record: bytes in it, or files in the exam's folder."""
    found: list[str] = []
    for name in MEDIA:
        value = record.get(name)
        for cell in value if isinstance(value, list) else [value]:
            data = _bytes(cell, folder)
            if data:
                found.append(f"sha256:{hashlib.sha256(data).hexdigest()}")
    return tuple(found)


def _bytes(cell: object, folder: Path) -> bytes:
    if isinstance(cell, Mapping):
        inside = cell.get("bytes")
        cell = inside if isinstance(inside, bytes) else cell.get("path")
    if isinstance(cell, bytes):
        return cell
    if not isinstance(cell, str) or not cell or "\0" in cell or len(cell) > 1000:
        return b""
    path = (folder / cell).resolve()
    inside_folder = path.is_relative_to(folder.resolve())
    return path.read_bytes() if inside_folder and path.is_file() else b""
