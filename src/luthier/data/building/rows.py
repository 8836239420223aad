"""How a row lies in an Arrow column: its JSON, its id, its key for finding equal content, its group.

Knows the canonical JSON of messages and targets; refuses to know files, sources and splits. Messages are kept as
JSON text and not as Arrow structs: Arrow gives every part every key, and a chat template that asks `'image' in part`
then finds an image where there is text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson
import pyarrow as pa

from luthier.data import exactjson
from luthier.data.alike.contentkey import folded
from luthier.schema import NO_TARGET, Message, Part, Provenance, Row, Target, canonical

STAGE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("messages", pa.large_string()),
        ("target", pa.string()),
        ("group", pa.string()),
        ("origin", pa.string()),
        ("more", pa.string()),
        ("seconds", pa.float64()),
        ("aux", pa.string()),
        ("key", pa.binary(16)),
    ]
)
_TEXT = ("id", "messages", "target", "group", "split", "source", "origin", "license", "attribution")
SCHEMA = pa.schema(
    [
        *((name, pa.large_string() if name == "messages" else pa.string()) for name in _TEXT),
        ("parents", pa.list_(pa.string())),
        ("seconds", pa.float64()),
        ("aux", pa.string()),
        ("more", pa.string()),
        ("weight", pa.float64()),
        ("repeats", pa.int32()),
    ]
)
_LOWER = bytes(range(256)).lower()
_BLANK = b" \t\n\r\f\v0123456789"


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row with the length of its sound, the numeric columns carried along, and what balancing says of it."""

    row: Row
    seconds: float
    aux: dict[str, float] = field(default_factory=dict)
    weight: float = 1.0
    repeats: int = 1


class Encoded(NamedTuple):
    """A row's content as it is stored: canonical JSON of messages and target, and the id that follows from them."""

    id: str
    messages: bytes
    target: bytes


def encode(row: Row) -> Encoded:
    """Canonical JSON and content id; the id equals `schema.content_id`."""
    messages = messages_json(row.messages)
    target = b"{}" if row.target is NO_TARGET else canonical(row.target.to_json()).encode()
    digest = hashlib.sha256(b"[" + messages)
    digest.update(b"," + target + b"]")
    return Encoded(digest.hexdigest()[:16], messages, target)


def messages_json(messages: tuple[Message, ...]) -> bytes:
    """The canonical JSON of messages. Keys are written in sorted order, so nothing is sorted at run time."""
    found: list[Any] = []
    for message in messages:
        content = message.content
        if message.more:
            return canonical([item.to_json() for item in messages]).encode()
        only = content[0] if len(content) == 1 else None
        if only is not None and only.media is None and only.text is not None:
            found.append({"content": [{"text": only.text, "type": only.type}], "role": message.role})
        else:
            found.append({"content": [_part(part) for part in content], "role": message.role})
    return orjson.dumps(found)


def _part(part: Part) -> dict[str, str]:
    if part.media is None and part.text is not None:
        return {"text": part.text, "type": part.type}
    return dict(sorted(part.to_json().items()))


def group_of(row: Row, identity: str) -> str:
    """What must not be split.

    The source's own group; else a row's media, for two questions about one picture belong together; else the first
    question, folded and without its numbers and white space; else the row itself, and always for graded rows.
    """
    if row.group:
        return row.group
    if row.target is not NO_TARGET and row.target.grade is not None:
        return identity
    if media := row.media:
        return "m-" + hashlib.sha256("".join(sorted(set(media))).encode()).hexdigest()[:16]
    if row.target is not NO_TARGET and row.target != NO_TARGET:
        return identity
    for message in row.messages:
        if message.role == "user":
            text = message.content[0].text if len(message.content) == 1 else message.text
            letters = _letters(text or "")
            return "q-" + hashlib.sha256(letters).hexdigest()[:16] if letters else identity
    return identity


def _letters(text: str) -> bytes:
    """A text folded as duplicates are, without decimals and white space."""
    if text.isascii():
        return text.encode().translate(_LOWER, _BLANK)
    plain = "".join(sign for sign in folded(text) if not (sign.isspace() or sign.isdecimal()))
    return plain.encode(errors="replace").translate(_LOWER, _BLANK)


def texts(messages: pa.LargeStringArray) -> list[str]:
    """What users and assistants say in each row, joined by newlines: the text that near duplicates share.

    System prompts are left out: many rows share one, which would make short questions look alike.
    """
    found = []
    for turns in map(orjson.loads, messages.cast(pa.large_binary()).to_pylist()):
        said = [
            part["text"] for turn in turns if turn["role"] != "system" for part in turn["content"] if "text" in part
        ]
        found.append("\n".join(said))
    return found


def to_messages(text: str | bytes) -> tuple[Message, ...]:
    """Messages from their JSON."""
    return tuple(Message.from_json(message) for message in exactjson.loads(text))


def from_record(record: Mapping[str, Any]) -> TableRow:
    """A row of a table from its Arrow record."""
    where = Provenance(
        record["source"], record["origin"], record["license"], record["attribution"], tuple(record["parents"] or ())
    )
    row = Row(
        record["id"],
        to_messages(record["messages"]),
        Target.from_json(orjson.loads(record["target"])),
        record["group"],
        record["split"],
        where,
        record["more"] or "",
    )
    return TableRow(row, record["seconds"], orjson.loads(record["aux"]), record["weight"], record["repeats"])
