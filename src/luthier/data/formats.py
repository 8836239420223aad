"""Turns a raw record of a graded table into a row with its recording, or into a drop with its reason.

Knows columns, grades and raters; refuses to know files, sources on disk and models. Text is kept as it
was written, but for Unicode normal form C, so that equal prompts are equal.
"""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.data import media
from luthier.data.readers import ERROR, column_for
from luthier.errors import MediaError
from luthier.schema import Drop, Message, Part, Provenance, Row, Target, content_id

if TYPE_CHECKING:
    from luthier.recipe import Columns, Limits, Scale

MAX_BYTES = 512 * 2**20
REASONS = (
    *media.REASONS,
    "missing_audio",
    "missing_grade",
    "grade_not_a_number",
    "grade_outside_scale",
    "missing_prompt",
    "path_outside_folder",
    "broken_line",
)


@dataclass(frozen=True, slots=True)
class Graded:
    """A usable row, the original bytes of its recording, its length, and the `keep` columns as numbers."""

    row: Row
    media: bytes
    seconds: float
    aux: dict[str, float]


class _Unusable(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def graded_row(
    record: dict[str, Any], columns: Columns, scale: Scale, limits: Limits, where: Provenance, split: str
) -> Graded | Drop:
    """Check a record from `readers.read_source` and decode its recording once.

    The row is one user turn, prompt then audio (`sha256:` of the original bytes); its group is the speaker,
    or its own id where there is none. The drop's reason is one word of `REASONS`.
    """
    try:
        if ERROR in record:
            raise _Unusable(*record[ERROR])
        grade = _number(record, column_for(columns.grade, record), scale)
        if grade is None:
            raise _Unusable("missing_grade", f"no value in {' or '.join(columns.grade)}")
        target = Target(
            grade=grade,
            raters=_panel(record, columns.raters, scale),
            held_back=_panel(record, columns.held_back, scale),
        )
        prompt = _prompt(record, columns.prompt)
        aux = {name: value for name in columns.keep if (value := _number(record, name, None)) is not None}
        data = _bytes(record, columns.audio)
        seconds = len(media.load_audio(data, limits)) / media.RATE
    except (_Unusable, MediaError) as problem:
        return Drop(where.source, where.origin, problem.reason, problem.detail)
    sound = f"sha256:{hashlib.sha256(data).hexdigest()}"
    messages = (Message("user", (Part("text", text=prompt), Part("audio", media=sound))),)
    identity = content_id(messages, target)
    group = _label(record, columns.group) or identity
    return Graded(Row(identity, messages, target, group, split, where), data, seconds, aux)


def _number(record: dict[str, Any], name: str | None, scale: Scale | None) -> float | None:
    """A finite number inside the scale; None where the cell is empty."""
    value = record.get(name) if name is not None else None
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise _Unusable("grade_not_a_number", f"{name} is {str(value)[:60]!r}")
    if scale is not None and not scale.minimum <= number <= scale.maximum:
        raise _Unusable(
            "grade_outside_scale", f"{name} is {number:g}, the scale is {scale.minimum:g} to {scale.maximum:g}"
        )
    return number


def _panel(record: dict[str, Any], names: Sequence[str], scale: Scale) -> tuple[float, ...]:
    """The raters that gave a mark; one who gave none is left out, as panels differ from row to row."""
    marks = (_number(record, name, scale) for name in names)
    return tuple(mark for mark in marks if mark is not None)


def _prompt(record: dict[str, Any], names: Sequence[str]) -> str:
    value = record.get(column_for(names, record) or "")
    if not isinstance(value, str) or not value.strip():
        raise _Unusable("missing_prompt", f"no text in {' or '.join(names)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _Unusable("missing_prompt", f"the text is not valid Unicode: {error.reason}") from error
    return unicodedata.normalize("NFC", value)


def _bytes(record: dict[str, Any], names: Sequence[str]) -> bytes:
    value = record.get(column_for(names, record) or "")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, Path):
        raise _Unusable("missing_audio", f"no recording in {' or '.join(names)}")
    try:
        if value.stat().st_size > MAX_BYTES:
            raise _Unusable("too_long", f"{value} is larger than {MAX_BYTES >> 20} MiB")
        return value.read_bytes()
    except OSError as error:
        raise _Unusable("missing_audio", f"{value}: {error.strerror or error}") from error


def _label(record: dict[str, Any], names: Sequence[str]) -> str:
    """A speaker's name as text; 7 and 7.0 are one, as empty cells turn a column of integers into floats."""
    value = record.get(column_for(names, record) or "")
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return unicodedata.normalize("NFC", str(value)).strip().encode(errors="replace").decode()
