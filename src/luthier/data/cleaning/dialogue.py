"""Steps that look at the shape of a conversation: who speaks, in which order, and how long.

Knows roles and lengths; refuses to know what is said.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from luthier.data.cleaning.stepkit import FilePath, ParameterError, Step, Turns, drop, texts
from luthier.schema import Drop, Message, Part, Row

REASONS = (
    "no_user_turn",
    "no_answer",
    "bad_role_order",
    "no_last_answer",
    "too_few_words",
    "too_many_words",
    "too_few_characters",
    "too_many_characters",
    "too_few_turns",
    "too_many_turns",
    "too_few_tokens",
    "too_many_tokens",
)
_FOLLOWS = {"": "user", "user": "assistant", "assistant": "user tool", "tool": "assistant tool"}


def require_messages() -> Step:
    """Keeps rows in which a user asks and an assistant answers, each with something other than white space.

    A user turn with an image, a sound or a video counts, as does an assistant turn that calls a tool, and a target.

    Drops: no_user_turn, no_answer.
    """

    def apply(row: Row) -> Row | Drop:
        asked, answered = False, row.target.text is not None or row.target.choice is not None
        answered = answered or row.target.grade is not None
        for message in row.messages:
            if message.role == "user":
                asked = asked or _says(message)
            elif message.role == "assistant":
                answered = answered or _says(message) or bool(message.more)
        if not asked:
            return drop(row, "no_user_turn", f"{len(row.messages)} messages, none of a user with text or media")
        if not answered:
            return drop(row, "no_answer", f"{len(row.messages)} messages, none of an assistant with text")
        return row

    return apply


def _says(message: Message) -> bool:
    return any(part.media or (part.text and not part.text.isspace()) for part in message.content)


def roles_alternate(merge: bool = False) -> Step:
    """Keeps rows whose turns alternate: system turns first if any, then user and assistant, and an answer at the end.

    Tool turns may follow an assistant turn or each other, and an assistant turn follows them.

    merge: joins neighbouring turns of one role, user or assistant, with a blank line between their texts, before the
        order is looked at. Turns that carry tool calls are left as they are.

    Drops: bad_role_order, no_last_answer.
    """

    def apply(row: Row) -> Row | Drop:
        before = ""
        for message in row.messages:
            role = message.role
            if role == "system" and not before:
                continue
            if role not in _FOLLOWS[before]:
                if merge and role == before and (merged := _merged(row)) is not row:
                    return apply(merged)
                order = " ".join(item.role for item in row.messages[:12])
                return drop(row, "bad_role_order", f"{role} after {before or 'the beginning'}: {order}")
            before = role
        if before == "assistant" or (before == "user" and row.target.to_json()):
            return row
        return drop(row, "no_last_answer", f"the last turn is of {before or 'nobody'}")

    return apply


def _merged(row: Row) -> Row:
    found: list[Message] = []
    for message in row.messages:
        last = found[-1] if found else None
        plain = message.role in ("user", "assistant") and not message.more
        if plain and last and last.role == message.role and not last.more:
            found[-1] = Message(last.role, _joined(last.content, message.content))
        else:
            found.append(message)
    return row if len(found) == len(row.messages) else replace(row, messages=tuple(found))


def _joined(first: tuple[Part, ...], second: tuple[Part, ...]) -> tuple[Part, ...]:
    """Two texts become one, so that a chat template does not glue them together; media stay where they are."""
    if first and second and first[-1].type == "text" and second[0].type == "text":
        one = Part("text", f"{first[-1].text or ''}\n\n{second[0].text or ''}")
        return (*first[:-1], one, *second[1:])
    return first + second


def length(
    minimum_words: int = 0,
    maximum_words: int = 0,
    minimum_characters: int = 0,
    maximum_characters: int = 0,
    minimum_turns: int = 0,
    maximum_turns: int = 0,
    per: Literal["row", "answer"] = "row",
) -> Step:
    """Keeps rows whose length is within bounds.

    minimum_words: fewest words, parted by white space; 0 for no bound, here and below.
    maximum_words: most words.
    minimum_characters: fewest characters (code points).
    maximum_characters: most characters.
    minimum_turns: fewest user and assistant turns.
    maximum_turns: most user and assistant turns.
    per: row takes all texts together; answer takes each assistant turn by itself, and one out of bounds drops the row.

    Drops: too_few_words, too_many_words, too_few_characters, too_many_characters, too_few_turns, too_many_turns.
    """
    for name, low, high in (
        ("maximum_words", minimum_words, maximum_words),
        ("maximum_characters", minimum_characters, maximum_characters),
        ("maximum_turns", minimum_turns, maximum_turns),
    ):
        if low < 0 or high < 0:
            raise ParameterError(name, "bounds are 0 or more")
        if high and low > high:
            raise ParameterError(name, f"the most ({high}) is below the fewest ({low})")
    words, characters = bool(minimum_words or maximum_words), bool(minimum_characters or maximum_characters)
    turns = bool(minimum_turns or maximum_turns)

    def apply(row: Row) -> Row | Drop:
        if turns:
            count = sum(message.role in ("user", "assistant") for message in row.messages)
            if found := _outside(row, "turns", count, minimum_turns, maximum_turns):
                return found
        if not (words or characters):
            return row
        parts = texts(row, "all" if per == "row" else "assistant")
        for group in [parts] if per == "row" else [[text] for text in parts] or [[]]:
            size = sum(map(len, group))
            if characters and (found := _outside(row, "characters", size, minimum_characters, maximum_characters)):
                return found
            # A text of n characters has at most (n + 1) // 2 words: most short rows need no counting.
            long = bool(maximum_words) and (size + len(group)) // 2 > maximum_words
            if words and (long or not _reaches(group, minimum_words)):
                count = sum(len(text.split()) for text in group)
                if found := _outside(row, "words", count, minimum_words, maximum_words):
                    return found
        return row

    return apply


def _reaches(group: list[str], words: int) -> bool:
    """Whether there are so many words; splits no further than it must."""
    found = 0
    for text in group:
        if found >= words:
            break
        found += len(text.split(None, words - found)[: words - found])
    return found >= words


def tokens(tokenizer: FilePath, minimum: int = 0, maximum: int = 0, turns: Turns = "all") -> Step:
    """Keeps rows whose length in tokens is within bounds; the marks that a chat template adds are not counted.

    tokenizer: a tokenizer.json file, read by the `tokenizers` library.
    minimum: fewest tokens; 0 for no bound.
    maximum: most tokens; 0 for no bound.
    turns: whose words are counted.

    Drops: too_few_tokens, too_many_tokens.
    """
    from tokenizers import Tokenizer

    if minimum < 0 or maximum < 0 or (maximum and minimum > maximum):
        raise ParameterError("maximum", f"the most ({maximum}) is below the fewest ({minimum})")
    try:
        loaded = Tokenizer.from_file(tokenizer)
    except Exception as error:  # the library raises Exception itself
        raise ParameterError("tokenizer", f"{tokenizer} is no tokenizer.json: {str(error)[:120]}") from error
    loaded.no_truncation()
    loaded.no_padding()  # a file may ask for a fixed length, which would be counted

    def apply(row: Row) -> Row | Drop:
        found = [loaded.encode(text, add_special_tokens=False) for text in texts(row, turns)]
        return _outside(row, "tokens", sum(map(len, found)), minimum, maximum) or row

    return apply


def _outside(row: Row, unit: str, count: int, low: int, high: int) -> Drop | None:
    if count < low:
        return drop(row, f"too_few_{unit}", f"{count} {unit}, at least {low} are asked for")
    if high and count > high:
        return drop(row, f"too_many_{unit}", f"{count} {unit}, at most {high} are allowed")
    return None
