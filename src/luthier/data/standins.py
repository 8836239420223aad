"""Chats made up to stand in for a source that cannot be reached, in the columns that the source itself has.

They repeat and turn round lists of a few common words, so that a toy can learn them and two rows are seldom alike.
Knows the columns of well-known sets and the formats of recipes; refuses to know models and the hub.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

from luthier.data.formats import export
from luthier.errors import RequestError
from luthier.files import sha256_bytes, write_jsonl
from luthier.recipe_data import Source
from luthier.schema import NO_TARGET, Message, Part, Provenance, Role, Row

WORDS = (
    "answer book clip day energy family friend green house image item knee leaf lung month number "
    "pain picture planet rater river school street student sun text train value water week word year"
).split()
KNOWN = {
    "mlabonne/finetome-100k": "sharegpt",
    "theblackcat102/sharegpt-english": "sharegpt",
    "huggingfaceh4/ultrachat_200k": "ultrachat",
}
"""Hub ids in small letters, and the format of their rows."""
_ROLES = {"completion": "prompt_completion", "instruction": "alpaca", "output": "alpaca", "text": "text"}
"""Roles that a source's `columns` may name, and the format that has them."""
_COLUMNS = {"sharegpt": "conversations", "messages": "messages", "ultrachat": "messages"}
_SINGLE = ("alpaca", "prompt_completion", "text")


def write_standin(source: Source, path: Path, rows: int, seed: int) -> None:
    """Write `rows` chats as JSON lines, as the source would hold them; the same arguments give the same bytes.

    Raises RequestError for formats that are not chats of text.
    """
    shape = shape_of(source)
    if shape not in (*_COLUMNS, *_SINGLE):
        raise RequestError(
            f"source {source.name}: no rows of the format {shape} can be made up",
            f"use a local copy: --set data.sources.{source.name}.path=FILE",
        )
    draw = random.Random(seed)
    chats = [_chat(draw, shape, source.name, number) for number in range(rows)]
    records = export(chats, shape, Counter())
    write_jsonl(path, (_columns(source, shape, record, number) for number, record in enumerate(records)))


def shape_of(source: Source) -> str:
    """The format that a source's rows have: as the recipe says, as the hub's well-known sets have it, or `messages`."""
    if source.format != "auto":
        return source.format
    named = next((shape for role, shape in _ROLES.items() if role in source.columns), "messages")
    return KNOWN.get(source.hub.lower(), named)


def _chat(draw: random.Random, shape: str, name: str, number: int) -> Row:
    said: list[tuple[Role, str]] = []
    if shape in _COLUMNS and draw.random() < 0.15:
        said.append(("system", "You are a helpful assistant. Keep the words as they are written."))
    for _ in range(1 if shape in _SINGLE else draw.choice((1, 1, 2, 3))):
        asked, answer = _exchange(draw)
        said += [("user", asked), ("assistant", answer)]
    if shape == "text":
        said = [("assistant", "\n".join(text for _, text in said))]
    messages = tuple(Message(role, (Part("text", text),)) for role, text in said)
    return Row("", messages, NO_TARGET, "", "train", Provenance(name, f"stand-in#{number + 1}"))


def _exchange(draw: random.Random) -> tuple[str, str]:
    """A question and its answer. Lists differ in length, so that rows and batches do."""
    words = [draw.choice(WORDS) for _ in range(draw.randint(5, 18))]
    told = " ".join(words)
    if draw.random() < 0.7:
        return f"Please say the words again: {told}.", f"The words are: {told}."
    return f"Please say the words from the last to the first: {told}.", f"The words are: {' '.join(reversed(words))}."


def _columns(source: Source, shape: str, record: dict[str, Any], number: int) -> dict[str, Any]:
    """A record under the source's own names, with the columns that well-known sets have beside the chat."""
    hub = source.hub.lower()
    if hub == "mlabonne/finetome-100k":
        record |= {"source": "stand-in", "score": 4.0 + number % 13 / 10}
    if hub == "huggingfaceh4/ultrachat_200k":
        record["prompt_id"] = sha256_bytes(record["prompt"].encode())
    own = dict(source.columns)
    if "messages" in own:
        own[_COLUMNS.get(shape, "messages")] = own.pop("messages")
    for role, made in (("group", f"group-{number // 2}"), ("id", f"stand-in-{number + 1}")):
        if role in own:
            record[role] = made
    return {own.get(name, name): value for name, value in record.items()}
