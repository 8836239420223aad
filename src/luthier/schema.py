"""What a row is: messages made of typed parts, a target, and where it all came from.

Frozen, slotted and free of tensors: a row can be hashed, compared, written to disk and read back equal.
Media are referred to by `sha256:<hex>`; the bytes live in a table's `media/` folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

PartType = Literal["text", "image", "audio", "video"]
Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of a message: `text` for text, `media` (`sha256:<hex>`) for image, audio, video."""

    type: PartType
    text: str | None = None
    media: str | None = None

    def to_json(self) -> dict[str, str]:
        """Only the keys that are there: a null key turns text into an image in some chat templates."""
        found = {"type": self.type, "text": self.text, "media": self.media}
        return {key: value for key, value in found.items() if value is not None}

    @classmethod
    def from_json(cls, value: dict[str, str]) -> Part:
        return cls(type=value["type"], text=value.get("text"), media=value.get("media"))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Message:
    """A turn: who speaks, and the parts of what is said, in order."""

    role: Role
    content: tuple[Part, ...]
    more: str = ""
    """What else a turn carries (tool_calls, tool_call_id, name), as a JSON object with sorted keys; "" for nothing."""

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"role": self.role, "content": [part.to_json() for part in self.content]}
        return {**json.loads(self.more), **found} if self.more else found

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Message:
        more = {key: item for key, item in value.items() if key not in ("role", "content")}
        return cls(
            role=value["role"],
            content=tuple(Part.from_json(part) for part in value["content"]),
            more=canonical(more) if more else "",
        )

    @property
    def text(self) -> str:
        """The text parts of this turn, joined by newlines."""
        return "\n".join(part.text or "" for part in self.content if part.type == "text")


@dataclass(frozen=True, slots=True)
class Target:
    """What a row's answer is: a text, a choice, or a grade from which a soft verdict is made.

    `raters` may be trained on; `held_back` are raters kept for evaluation alone.
    """

    text: str | None = None
    choice: str | None = None
    grade: float | None = None
    raters: tuple[float, ...] = ()
    held_back: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"text": self.text, "choice": self.choice, "grade": self.grade}
        found = {key: value for key, value in found.items() if value is not None}
        if self.raters:
            found["raters"] = list(self.raters)
        if self.held_back:
            found["held_back"] = list(self.held_back)
        return found

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Target:
        return cls(
            text=value.get("text"),
            choice=value.get("choice"),
            grade=value.get("grade"),
            raters=tuple(value.get("raters", ())),
            held_back=tuple(value.get("held_back", ())),
        )


NO_TARGET = Target()
"""What a row has whose answers are its own assistant turns."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a row comes from. `source` is the recipe's name for it, `origin` the file and row in it."""

    source: str
    origin: str
    license: str | None = None
    attribution: str | None = None
    parents: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """One example. `id` is a hash of its content, `group` what must never be split (speaker, page)."""

    id: str
    messages: tuple[Message, ...]
    target: Target
    group: str
    split: str
    provenance: Provenance
    more: str = ""
    """Columns of the source that mean nothing to us, as a JSON object with sorted keys; no part of the id."""

    @property
    def text(self) -> str:
        """All text of the user's turns, joined by newlines."""
        return "\n".join(
            part.text or ""
            for message in self.messages
            if message.role == "user"
            for part in message.content
            if part.type == "text"
        )

    @property
    def media(self) -> tuple[str, ...]:
        """The references of all media parts, in order."""
        return tuple(part.media for message in self.messages for part in message.content if part.media)


def content_id(messages: tuple[Message, ...], target: Target) -> str:
    """A row's id: the first 16 hex digits of the sha256 of its messages and target."""
    text = canonical([[message.to_json() for message in messages], target.to_json()])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def canonical(value: Any) -> str:
    """JSON of which equal values have one spelling: sorted keys, no spaces, no escapes beyond the needed ones."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Draft:
    """A row on its way into a table, with what the table will keep beside it.

    `blobs` holds the original bytes of the media that the row refers to, by reference; `seconds` is the length of
    its sound; `aux` numeric columns that are carried along. `row.id` is "" until the table gives it one.
    """

    row: Row
    blobs: Mapping[str, bytes] = field(default_factory=dict)
    seconds: float = 0.0
    aux: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Drop:
    """A row that was left out: which, why (one word of a fixed list), and the detail for a person."""

    source: str
    origin: str
    reason: str
    detail: str = ""
