"""What every step shares: its type, the texts of a row that it looks at, and how a row with other texts is made.

Knows rows; refuses to know what a step looks for. A row whose texts did not change is returned as the same object,
which is how the engine sees that a step did nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, NewType

from luthier.schema import Drop, Message, Part, Row

Step = Callable[[Row], Row | Drop]
Turns = Literal["all", "user", "assistant"]
"""Whose words a step looks at. A target's text counts as the assistant's; system and tool turns are in `all` alone."""
FilePath = NewType("FilePath", str)
"""A parameter that names a file: its bytes are part of what a step's result depends on."""


class ParameterError(ValueError):
    """A value that a step cannot work with. `parameter` is the step's name for it."""

    def __init__(self, parameter: str, reason: str) -> None:
        super().__init__(reason)
        self.parameter = parameter
        self.reason = reason


def texts(row: Row, turns: Turns) -> list[str]:
    """The texts that are not empty, in order."""
    found = []
    for message in row.messages:
        if turns == "all" or message.role == turns:
            for part in message.content:
                if part.text:
                    found.append(part.text)
    if turns != "user" and row.target.text:
        found.append(row.target.text)
    return found


def rewrite(row: Row, turns: Turns, change: Callable[[str], str]) -> Row:
    """The row with `change` applied to each text; the same object where no text changed."""
    messages: list[Message] | None = None
    for place, message in enumerate(row.messages):
        if turns != "all" and message.role != turns:
            continue
        content: list[Part] | None = None
        for number, part in enumerate(message.content):
            if part.text:
                after = change(part.text)
                if after != part.text:
                    content = content if content is not None else list(message.content)
                    content[number] = Part(part.type, after, part.media)
        if content is not None:
            messages = messages if messages is not None else list(row.messages)
            messages[place] = Message(message.role, tuple(content), message.more)
    if messages is not None:
        row = replace(row, messages=tuple(messages))
    if turns != "user" and row.target.text:
        after = change(row.target.text)
        if after != row.target.text:
            row = replace(row, target=replace(row.target, text=after))
    return row


def drop(row: Row, reason: str, detail: str = "") -> Drop:
    """Why a row is left out."""
    return Drop(row.provenance.source, row.provenance.origin, reason, detail)
