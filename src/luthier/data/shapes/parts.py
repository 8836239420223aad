"""Cells to parts: texts checked, media placed where a record says, what is left of a record kept as JSON.

Knows typed parts, `<image>` tokens and columns of media; refuses to know turns, formats' names and files' shapes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import orjson

from luthier.data import exactjson, media
from luthier.data.building.context import Context, Record
from luthier.data.pictures import REASONS as PICTURE_REASONS
from luthier.data.pictures import check_picture
from luthier.data.reading.places import REASONS as PLACE_REASONS
from luthier.data.reading.places import media_bytes
from luthier.data.video import check_video
from luthier.data.videofiles import REASONS as VIDEO_REASONS
from luthier.schema import NO_TARGET, Draft, Message, Part, PartType, Row, Target, canonical

REASONS = (
    "not_text",
    "bad_unicode",
    "nul_character",
    "media_count",
    "unknown_part",
    *PLACE_REASONS,
    *PICTURE_REASONS,
    *media.REASONS,
    *VIDEO_REASONS,
)
TOKEN = re.compile("<(image|audio|video)>")
MEDIA_COLUMNS: dict[PartType, tuple[str, ...]] = {
    "image": ("images", "image"),
    "audio": ("audios", "audio"),
    "video": ("videos", "video"),
}
MEDIA_NAMES = frozenset(name for names in MEDIA_COLUMNS.values() for name in names)
KINDS: dict[str, PartType] = {
    **dict.fromkeys(("text", "input_text", "output_text"), "text"),
    **dict.fromkeys(("image", "image_url", "input_image"), "image"),
    **dict.fromkeys(("audio", "audio_url", "input_audio"), "audio"),
    **dict.fromkeys(("video", "video_url"), "video"),
}
DROPPED = "dropped"
"""The key of `Row.more` that lists what of a record could not be kept."""
_WHERE = ("url", "path", "media", "bytes", "image", "audio", "video")
_SAVED = orjson.OPT_SORT_KEYS


class Unusable(Exception):
    """A record that makes no row: `reason` is one word of a list, `detail` is for a person."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def as_text(value: object, where: str) -> str:
    """A cell as text; a number becomes its text. Raises Unusable (not_text, nul_character, bad_unicode)."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    if not isinstance(value, str):
        raise Unusable("not_text", f"{where} is {_kind(value)}")
    check_text(value, where)
    return value


def check_text(text: str, where: str) -> None:
    """Raises Unusable where no file could hold the text (lone surrogates) or a NUL would end it early."""
    if "\0" in text:
        raise Unusable("nul_character", f"{where} holds a NUL at character {text.index(chr(0))}")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise Unusable("bad_unicode", f"{where}: {error.reason} at character {error.start}") from error


class Supply:
    """The media of one record: those of its columns wait for their placeholders, others come with a part."""

    def __init__(self, context: Context, record: Record) -> None:
        self.context = context
        self.blobs: dict[str, bytes] = {}
        self.seconds = 0.0
        self.lost: set[str] = set()
        self.used: set[str] = set()
        self.declared = False
        """Whether this source has columns of media: then `<image>` in a text stands for a picture."""
        self._cells: dict[PartType, list[Any]] = {"image": [], "audio": [], "video": []}
        for kind, names in MEDIA_COLUMNS.items():
            mapped = context.source.columns.get(kind)
            for name in (mapped,) if mapped else names:
                self.declared |= name in record or name in context.found
                if name in record:
                    self.used.add(name)
                    self._cells[kind] += _cells(record[name])

    @property
    def waiting(self) -> list[PartType]:
        """The kinds of the media that no placeholder has taken yet."""
        return [kind for kind, cells in self._cells.items() for _ in cells]

    def take(self, kind: PartType) -> Part:
        """The next medium of its column. Raises Unusable (media_count), MediaError."""
        if not self._cells[kind]:
            raise Unusable("media_count", f"a placeholder for {kind} has no {kind} in the columns")
        return self.part(kind, self._cells[kind].pop(0))

    def part(self, kind: PartType, value: Any) -> Part:
        """A medium's part; its bytes are checked and kept. Raises MediaError."""
        if isinstance(value, str) and value.startswith("sha256:"):
            value = f"media/{value[7:]}"
        data = media_bytes(value, self.context)
        if kind == "image":
            check_picture(data, self.context.limits)
        elif kind == "audio":
            self.seconds += len(media.load_audio(data, self.context.limits)) / media.RATE
        else:
            check_video(data, self.context.limits)
        reference = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.blobs[reference] = data
        return Part(kind, None, reference)

    def text_parts(self, text: str) -> tuple[Part, ...]:
        """A text as parts: where the source has columns of media, tokens in it are replaced by what they stand for."""
        if not self.declared:
            if text.startswith("<image>") or text.endswith("<image>"):
                raise Unusable("media_count", "<image> in the text, but no column of pictures: map one as `image`")
            return (Part("text", text),)
        parts: list[Part] = []
        pieces = TOKEN.split(text)
        for place, piece in enumerate(pieces):
            if place % 2:
                parts.append(self.take(piece))  # type: ignore[arg-type]
            elif piece or len(pieces) == 1:
                parts.append(Part("text", piece))
        return tuple(parts)

    def typed_parts(self, items: Sequence[Any], where: str) -> tuple[Part, ...]:
        """A list of typed parts. Null keys mean nothing: Arrow adds them. Raises Unusable (unknown_part, ...)."""
        parts: list[Part] = []
        for item in items:
            if isinstance(item, str):
                parts.append(Part("text", as_text(item, where)))
                continue
            if not isinstance(item, dict):
                raise Unusable("unknown_part", f"{where} holds {_kind(item)}")
            found = {key: value for key, value in item.items() if value is not None}
            named = found.pop("type", None) or next((key for key in KINDS if key in found), None)
            kind = KINDS.get(named) if isinstance(named, str) else None
            if kind is None:
                raise Unusable("unknown_part", f"{where} holds a part of type {named!r}")
            if kind == "text":
                parts.append(Part("text", as_text(found.pop("text", None), where)))
            else:
                parts.append(self._medium(kind, str(named), found))
            self.lost.update(f"{named}.{key}" for key in found)
        return tuple(parts)

    def _medium(self, kind: PartType, named: str, found: dict[str, Any]) -> Part:
        keys = [key for key in (named, *_WHERE) if key in found]
        if not keys:
            return self.take(kind)
        value = found.pop(keys[0])
        if isinstance(value, dict) and value.get("data") is not None:
            try:
                value = base64.b64decode(value["data"], validate=True)
            except (ValueError, TypeError, binascii.Error) as error:
                raise Unusable("unknown_part", f"{named}: not base64: {error}") from error
        elif isinstance(value, dict):
            extra = value.keys() - {"url", "path", "bytes"}
            self.lost.update(f"{named}.{key}" for key in extra if value[key] is not None)
        return self.part(kind, value)

    def check_used(self) -> None:
        """Raises Unusable (media_count) where media are left that nothing in the record stands for."""
        if self.waiting:
            raise Unusable("media_count", f"no placeholder for {' and '.join(self.waiting)}")


def finish(
    context: Context,
    origin: str,
    record: Record,
    messages: Sequence[Message],
    supply: Supply,
    kept: Mapping[str, Any],
    target: Target = NO_TARGET,
) -> Draft:
    """The draft of a row; `supply.used` names the columns that were read, `kept` goes into `Row.more`."""
    supply.check_used()
    more = leftovers(record, supply.used, kept, supply.lost)
    group = group_of(context, record)
    row = Row("", tuple(messages), target, group, context.split, context.provenance(origin), more)
    return Draft(row, supply.blobs, supply.seconds)


def group_of(context: Context, record: Record) -> str:
    """The mapped group as text, or "". 7 and 7.0 are one: empty cells turn a column of integers into floats."""
    name = context.source.columns.get("group")
    value = record.get(name) if name else None
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip().encode(errors="replace").decode()


def leftovers(
    record: Record, used: Collection[str], kept: Mapping[str, Any] | None = None, lost: Collection[str] = ()
) -> str:
    """What is left of a record, as JSON with sorted keys; "" for nothing. What JSON cannot hold is listed there."""
    rest = {key: value for key, value in record.items() if key not in used}
    if kept:
        rest = {**kept, **rest}
    if not rest and not lost:
        return ""
    if not lost:
        try:
            text = orjson.dumps(rest, option=_SAVED)
        except (TypeError, ValueError):
            text = b"null"
        # NaN is written as null without a word: only then is it worth a look.
        if b"null" not in text:
            return text.decode()
    unfit = [key for key, value in rest.items() if not _fits(value)] + sorted(lost)
    if unfit:
        if DROPPED in rest:
            unfit.append(DROPPED)
        rest = {str(key): value for key, value in rest.items() if key not in unfit}
        rest[DROPPED] = [str(key).encode(errors="replace").decode() for key in unfit]
    try:
        return orjson.dumps(rest, option=_SAVED).decode()
    except TypeError:
        return canonical(rest)  # integers beyond 64 bits


def extra_json(found: Mapping[str, Any], where: str) -> str:
    """What else a turn carries, as canonical JSON. Raises Unusable (not_text) for what JSON cannot hold."""
    try:
        text = canonical(found)
        text.encode()
    except (TypeError, ValueError) as error:
        raise Unusable("not_text", f"{where}: {', '.join(map(str, found))}: {error}") from error
    return text


def _fits(value: Any) -> bool:
    try:
        text = orjson.dumps(value)
    except (TypeError, ValueError):
        try:
            canonical(value).encode()
        except (TypeError, ValueError):
            return False
        return True
    return b"null" not in text or not _has_nan(value)


def _has_nan(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        return any(_has_nan(item) for item in value.values())
    return isinstance(value, list | tuple) and any(_has_nan(item) for item in value)


def _cells(value: Any) -> list[Any]:
    if isinstance(value, str) and value.startswith("["):
        try:
            value = exactjson.loads(value)
        except ValueError:
            return [value]
    if isinstance(value, list | tuple):
        return [item for item in value if item is not None]
    return [] if value is None or value == "" else [value]


def _kind(value: object) -> str:
    return "null" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
