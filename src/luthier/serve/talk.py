"""A conversation as the Assistant page shows it and hands it out: HTML, OpenAI messages, Markdown.

Knows messages; refuses to know events and engines.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from html import escape
from typing import Any

from luthier.errors import LuthierError
from luthier.schema import Message, Part
from luthier.serve import look
from luthier.serve.store import Conversation

Picture = Callable[[str], str]
"""The `data:` address under which a picture of this reference is shown."""
Fields = Callable[[str], str]
"""What is shown under an answer, as HTML."""
_NAMES = {"user": "You", "assistant": "Model", "system": "Instructions"}
_EMPTY = (
    '<div class="empty"><p>Ask something, or press the microphone and say it.<br>'
    "What was heard can be mended before it is sent.</p></div>"
)


def user_message(text: str, pictures: tuple[Part, ...]) -> Message:
    """A question: its pictures first, then its words."""
    return Message("user", (*pictures, *((Part("text", text),) if text or not pictures else ())))


def assistant_message(text: str) -> Message:
    """An answer."""
    return Message("assistant", (Part("text", text),))


def with_system(messages: tuple[Message, ...], system: str) -> tuple[Message, ...]:
    """The same conversation under these instructions, or under none."""
    rest = tuple(message for message in messages if message.role != "system")
    return (Message("system", (Part("text", system.strip()),)), *rest) if system.strip() else rest


def system_of(messages: tuple[Message, ...]) -> str:
    """The instructions of a conversation, or ""."""
    return next((message.text for message in messages if message.role == "system"), "")


def transcript(
    talk: Conversation | None, picture: Picture, writing: str | None = None, fields: Fields | None = None
) -> str:
    """All turns as HTML; `writing`: what has come so far of an answer. A question can be edited while none is written.

    An edit button carries the place of its question among the conversation's messages.
    """
    turns = [
        _turn(message, picture, place if writing is None else None, fields)
        for place, message in enumerate(talk.messages if talk else ())
        if message.role != "system"
    ]
    if writing is not None:
        # Markdown that is still growing would jump; it is set when it is whole.
        turns.append(
            f'<div class="turn assistant"><h3>Model</h3><div class="words exact cursor">{escape(writing)}</div></div>'
        )
    return f'<div class="turns">{"".join(turns)}</div>' if turns else _EMPTY


def _turn(message: Message, picture: Picture, place: int | None, fields: Fields | None) -> str:
    shown = [
        _picture(part.media, picture)
        if part.media
        else (look.markdown if message.role == "assistant" else look.exact)(part.text or "")
        for part in message.content
    ]
    if fields and message.role == "assistant":
        shown.append(fields(message.text))
    edit = ""
    if message.role == "user" and place is not None:
        edit = f'<button type="button" class="small" data-turn="{place}" aria-label="Edit this question">Edit</button>'
    return f'<div class="turn {message.role}"><h3>{_NAMES[message.role]}{edit}</h3>{"".join(shown)}</div>'


def _picture(reference: str, picture: Picture) -> str:
    """A picture, or why it cannot be shown: the conversation is read all the same."""
    try:
        return f'<img class="pic" alt="The picture that was sent" src="{picture(reference)}">'
    except LuthierError as error:
        return look.sentence(error)


def as_jsonl(talk: Conversation, picture: Picture) -> bytes:
    """One line: OpenAI messages, pictures within, and what the answers were asked of."""

    def content(message: Message) -> Any:
        if len(message.content) == 1 and message.content[0].text is not None:
            return message.content[0].text
        return [
            {"type": "image_url", "image_url": {"url": picture(part.media)}}
            if part.media
            else {"type": "text", "text": part.text}
            for part in message.content
        ]

    messages = [{"role": message.role, "content": content(message)} for message in talk.messages]
    return (json.dumps({"messages": messages, "model": talk.model}, ensure_ascii=False) + "\n").encode()


def as_markdown(talk: Conversation) -> bytes:
    """A page to read: a heading for each turn."""
    parts = [f"# A conversation with {talk.model}"]
    for message in talk.messages:
        said = [part.text if part.text is not None else "*(a picture)*" for part in message.content]
        parts += [f"## {_NAMES[message.role]}", *said]
    return ("\n\n".join(parts) + "\n").encode()
