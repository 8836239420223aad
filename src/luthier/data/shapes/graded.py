"""Turns a record of a graded table into a draft of a row with its recording, picture or video, or into a drop with its
reason.

Knows columns, grades and raters; refuses to know files, sources on disk and models. Text is kept as it
was written, but for Unicode normal form C, so that equal prompts are equal.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.data import media
from luthier.data.building.context import Adapter, Context, Record
from luthier.data.pictures import REASONS as PICTURE_REASONS
from luthier.data.pictures import check_picture
from luthier.data.reading import places
from luthier.data.video import check_video
from luthier.data.videofiles import REASONS as VIDEO_REASONS
from luthier.errors import MediaError, SourceError
from luthier.recipe import Scale
from luthier.recipe_data import Limits
from luthier.schema import Draft, Drop, Message, Part, PartType, Row, Target

REASONS = (
    *media.REASONS,
    *PICTURE_REASONS,
    *VIDEO_REASONS,
    "missing_audio",
    "missing_media",
    "missing_grade",
    "grade_not_a_number",
    "grade_outside_scale",
    "missing_prompt",
    "path_outside_folder",
    "remote_media",
)
KINDS: tuple[PartType, ...] = ("audio", "image", "video")
"""What is graded, in the order in which columns are looked for."""
_ANY = "path"
"""The one name of recordings that says nothing of what it names."""
_OURS = {"missing_media": "missing_audio", "too_large": "too_long"}


class _Unusable(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class _Chosen:
    """The names that each role may have, and the one column that it has in the whole source, or None.

    One for all records: a record without it must not fall back to a column of another meaning.
    """

    kind: PartType
    """What is graded."""
    names: Mapping[str, Sequence[str]]
    columns: dict[str, str | None]

    def value(self, record: Record, role: str) -> Any:
        return record.get(self.columns[role] or "")

    def said(self, role: str) -> str:
        return " or ".join(self.names[role])


def adapter(context: Context) -> Adapter:
    """Turns records of one source into drafts: one user turn, prompt then medium (`sha256:` of the original bytes).

    The group is the speaker, or "" where there is none; a drop's reason is one word of `REASONS`. Raises SourceError
    where `context.found` lacks a column for the medium, the prompt or the grade.
    """
    chosen = _choose(context)

    def draft(origin: str, record: Record) -> Draft | Drop:
        try:
            return _draft(origin, record, context, chosen)
        except (_Unusable, MediaError) as problem:
            return context.drop(origin, problem.reason, problem.detail)

    return draft


def column_for(names: Iterable[str], available: Iterable[str]) -> str | None:
    """The first of `names` that is among `available`."""
    there = set(available)
    return next((name for name in names if name in there), None)


def _choose(context: Context) -> _Chosen:
    """The column of each role: the source's own mapping, then the recipe's names. Raises SourceError."""
    columns, mapped = context.columns, context.source.columns
    kind = _kind(context)
    named = {kind: getattr(columns, kind), "prompt": columns.prompt, "grade": columns.grade, "group": columns.group}
    names = {role: [mapped[role]] if role in mapped else there for role, there in named.items()}
    # `file_name` is what audio folders call the recording.
    looked = {role: [*there, "file_name"] if role == "audio" else there for role, there in names.items()}
    found = {role: column_for(there, context.found) for role, there in looked.items()}
    missing = {role: names[role] for role in (kind, "prompt", "grade") if found[role] is None}
    if context.found and missing:
        raise _lacking(context, missing)
    return _Chosen(kind, names, found)


def _kind(context: Context) -> PartType:
    """What is graded: what the source maps, or else what a column is named after."""
    mapped = [kind for kind in KINDS if kind in context.source.columns]
    if mapped:
        return mapped[0]
    for kind in KINDS:
        names = [name for name in getattr(context.columns, kind) if name != _ANY]
        if column_for(names, context.found):
            return kind
    return "audio"


def _lacking(context: Context, missing: Mapping[str, Sequence[str]]) -> SourceError:
    role, names = next(iter(missing.items()))
    near = [match for name in names for match in difflib.get_close_matches(name, context.found, n=1, cutoff=0.6)]
    hint = f"did you mean {near[0]!r}? " if near else ""
    return SourceError(
        f"source {context.source.name}: no column for {', '.join(missing)} "
        f"(looked for {', '.join(names)}); it has {', '.join(context.found)}",
        f"{hint}set data.columns.{role} to one of its columns",
    )


def _draft(origin: str, record: Record, context: Context, chosen: _Chosen) -> Draft:
    columns, scale = context.columns, context.scale
    grade = _number(record, chosen.columns["grade"], scale)
    if grade is None:
        raise _Unusable("missing_grade", f"no value in {chosen.said('grade')}")
    target = Target(
        grade=grade,
        raters=_panel(record, columns.raters, scale),
        held_back=_panel(record, columns.held_back, scale),
    )
    prompt = _prompt(chosen.value(record, "prompt"), chosen.said("prompt"))
    aux = {name: value for name in columns.keep if (value := _number(record, name, None)) is not None}
    kind = chosen.kind
    data = _medium(kind, chosen.value(record, kind), context, chosen.said(kind))
    seconds = _checked(kind, data, context.limits)
    reference = f"sha256:{hashlib.sha256(data).hexdigest()}"
    messages = (Message("user", (Part("text", text=prompt), Part(kind, media=reference))),)
    group = _label(chosen.value(record, "group"))
    row = Row("", messages, target, group, context.split, context.provenance(origin))
    return Draft(row, {reference: data}, seconds, aux)


def _medium(kind: PartType, value: Any, context: Context, said: str) -> bytes:
    try:
        return places.media_bytes(value, context)
    except MediaError as problem:
        word = "recording" if kind == "audio" else kind
        detail = f"no {word} in {said}" if problem.detail == places.NOTHING else problem.detail
        reason = _OURS.get(problem.reason, problem.reason) if kind == "audio" else problem.reason
        raise _Unusable(reason, detail) from problem


def _checked(kind: PartType, data: bytes, limits: Limits) -> float:
    """The seconds of a recording or video, and 0 of a picture. Raises MediaError."""
    if kind == "audio":
        return len(media.load_audio(data, limits)) / media.RATE
    if kind == "video":
        return check_video(data, limits).duration
    check_picture(data, limits)
    return 0.0


def _number(record: Record, name: str | None, scale: Scale | None) -> float | None:
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


def _panel(record: Record, names: Sequence[str], scale: Scale) -> tuple[float, ...]:
    """The raters that gave a mark; one who gave none is left out, as panels differ from row to row."""
    marks = (_number(record, name, scale) for name in names)
    return tuple(mark for mark in marks if mark is not None)


def _prompt(value: Any, said: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _Unusable("missing_prompt", f"no text in {said}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _Unusable("missing_prompt", f"the text is not valid Unicode: {error.reason}") from error
    return unicodedata.normalize("NFC", value)


def _label(value: Any) -> str:
    """A speaker's name as text; 7 and 7.0 are one, as empty cells turn a column of integers into floats."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return unicodedata.normalize("NFC", str(value)).strip().encode(errors="replace").decode()
