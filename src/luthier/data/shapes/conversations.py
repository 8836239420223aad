"""Records that hold a list of turns to rows: ShareGPT, OpenAI messages, UltraChat.

Knows how turns are spelt and who speaks in them; refuses to know files, typed parts and how media are found. Turns of
two plain texts each take a short way of a few microseconds a row; whatever is unusual takes the long way, which gives
the same rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.data import exactjson
from luthier.data.building.context import Adapter, Context, Record
from luthier.data.shapes import parts
from luthier.data.shapes.parts import (
    MEDIA_COLUMNS,
    MEDIA_NAMES,
    Supply,
    Unusable,
    as_text,
    extra_json,
    finish,
    group_of,
    leftovers,
)
from luthier.errors import MediaError
from luthier.schema import NO_TARGET, Draft, Drop, Message, Part, Role, Row

REASONS = ("no_messages", "unknown_role", *parts.REASONS)
TURNS = ("conversations", "conversation", "dialog", "messages")
"""Columns of turns that name their speaker; the first three are ShareGPT's."""
LISTS = ("data", "dialogue", "dialogues", "turns", "utterances")
"""Columns that may hold bare texts, the user's first."""
CALL = "function_call"
"""The speaker of ShareGPT whose text is the assistant's call of a tool, as JSON."""
ROLES: dict[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "bot", "model", "claude", CALL), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "ipython"), "tool"),
}
SHAREGPT: dict[Role, str] = {"system": "system", "user": "human", "assistant": "gpt", "tool": "tool"}
MESSAGES: dict[Role, str] = {"system": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_TURN_KEYS = frozenset(("from", "value", "role", "content"))


@dataclass(frozen=True)
class Shape:
    """Where a format keeps its turns, under which keys of a turn are speaker and text, and its names of speakers."""

    columns: tuple[str, ...]
    role: str
    text: str
    names: Mapping[Role, str]


def sharegpt(context: Context) -> Adapter:
    """`conversations` of `from` and `value` (or `role` and `content`), with `system` and media for `<image>` tokens."""
    return _adapter(context, Shape((*TURNS, *LISTS), "from", "value", SHAREGPT))


def messages(context: Context) -> Adapter:
    """`messages` of `role` and `content`: a text, typed parts, or null beside `tool_calls`."""
    return _adapter(context, Shape(("messages", *TURNS[:3], *LISTS), "role", "content", MESSAGES))


def ultrachat(context: Context) -> Adapter:
    """Like `messages`, or a list of bare texts, the user's first; a `prompt` that is not the first comes before it."""
    shape = Shape(("messages", *LISTS, *TURNS[:3]), "role", "content", MESSAGES)
    return _adapter(context, shape, context.source.columns.get("prompt", "prompt"))


def _adapter(context: Context, shape: Shape, opens: str = "") -> Adapter:
    """An adapter of turns; `opens` names the column that repeats, or is, the first question."""
    mapped = context.source.columns
    # The column that this table does have comes first, for the short way looks at no other.
    columns = tuple(sorted(shape.columns, key=lambda name: name not in context.found))
    shape = Shape((mapped["messages"],) if "messages" in mapped else columns, shape.role, shape.text, shape.names)
    column, speaker, words = shape.columns[0], shape.role, shape.text
    roles: dict[str, Role] = {name: role for role, name in shape.names.items()}
    system, grouped, split = mapped.get("system", "system"), "group" in mapped, context.split
    plain = MEDIA_NAMES.isdisjoint(context.found) and not mapped.keys() & {*MEDIA_COLUMNS, "tools"}

    def draft(origin: str, record: Record) -> Draft | Drop:
        try:
            turns = record.get(column)
            if not (plain and type(turns) is list and turns):
                return _long_way(context, shape, opens, origin, record)
            found: list[Message] = []
            for turn in turns:
                if type(turn) is not dict or len(turn) != 2:
                    break
                name, text = turn.get(speaker), turn.get(words)
                if type(name) is not str or type(text) is not str or name not in roles:
                    break
                # "<" is sought first: one character is found many times as fast as seven.
                if "\0" in text or ("<" in text and "<image>" in text) or not (text.isascii() or _encodes(text)):
                    break
                found.append(Message(roles[name], (Part("text", text),)))
            else:
                more = ""
                if len(record) > 1:
                    if not _is_empty(record.get(system)) or not MEDIA_NAMES.isdisjoint(record):
                        return _long_way(context, shape, opens, origin, record)
                    used = [column]
                    if system in record:
                        used.append(system)
                    if opens and _repeats(record, opens, found):
                        used.append(opens)
                    if len(used) < len(record):
                        more = leftovers(record, used)
                group = group_of(context, record) if grouped else ""
                return Draft(Row("", tuple(found), NO_TARGET, group, split, context.provenance(origin), more))
            return _long_way(context, shape, opens, origin, record)
        except (Unusable, MediaError) as problem:
            return context.drop(origin, problem.reason, problem.detail)

    return draft


def _long_way(context: Context, shape: Shape, opens: str, origin: str, record: Record) -> Draft:
    """Any record of turns. Raises Unusable, MediaError."""
    mapped = context.source.columns
    supply = Supply(context, record)
    column, turns = find_turns(record, shape.columns)
    supply.used.add(column)
    if opens and not isinstance(turns[0], dict):
        if record.get(opens) is not None:
            supply.used.add(opens)
            first = as_text(record[opens], opens)
            turns = turns if turns[0] == first else [first, *turns]
        turns = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(turns)]
    names = _spelling(turns[0], shape.names)
    read = [read_turn(turn, supply, f"turn {place + 1}", names) for place, turn in enumerate(turns)]
    kept: dict[str, Any] = {}
    system = mapped.get("system", "system")
    value = record.get(system)
    if _is_empty(value):
        supply.used.add(system)
    else:
        message = Message("system", (Part("text", as_text(value, system)),))
        # Said twice, it is said once; the column then stays where all leftovers are.
        if read[0][0] != message:
            supply.used.add(system)
            read.insert(0, (message, names["system"]))
            kept["system_column"] = True
    found = [message for message, _ in read]
    if any(name != own_name(message, names) for message, name in read):
        kept["roles"] = [name for _, name in read]
    if opens and _repeats(record, opens, found):
        supply.used.add(opens)
    if "tools" in mapped and mapped["tools"] in record and "tools" not in record:
        supply.used.add(mapped["tools"])
        kept["tools"] = record[mapped["tools"]]
    return finish(context, origin, record, found, supply, kept)


def find_turns(record: Record, columns: Sequence[str]) -> tuple[str, list[Any]]:
    """The first of the columns that holds turns, and these; a JSON text of a list is read. Raises Unusable."""
    for column in columns:
        value = record.get(column)
        if isinstance(value, str) and value.lstrip()[:1] == "[":
            try:
                value = exactjson.loads(value)
            except ValueError as error:
                raise Unusable("no_messages", f"{column} is no list and no JSON of one: {error}") from error
        if isinstance(value, list | tuple) and value:
            return column, list(value)
    seen = [
        f"{column}, which is {'empty' if isinstance(record[column], list | tuple) else type(record[column]).__name__}"
        for column in columns
        if record.get(column) is not None
    ]
    raise Unusable("no_messages", f"no turns in {', '.join(seen) or ' or '.join(columns)}")


def read_turn(turn: Any, supply: Supply, where: str, names: Mapping[Role, str]) -> tuple[Message, str]:
    """A turn and its speaker's name as written; `names` tells which keys count where a turn has both kinds.

    Null keys mean nothing: Arrow adds them. Raises Unusable (unknown_role, not_text, ...), MediaError.
    """
    if not isinstance(turn, dict):
        raise Unusable("unknown_role", f"{where} is {type(turn).__name__}, not a turn with a speaker")
    extra = {key: value for key, value in turn.items() if value is not None}
    speakers, texts = ("from", "role"), ("value", "content")
    if names["user"] != SHAREGPT["user"]:
        speakers, texts = speakers[::-1], texts[::-1]
    # A third spelling is user and text (theblackcat102/sharegpt-english).
    speaker = next((key for key in (*speakers, "user") if key in extra), speakers[0])
    words = next((key for key in (*texts, "text") if key in extra), texts[0])
    name, value = extra.pop(speaker, None), extra.pop(words, None)
    role = ROLES.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        raise Unusable("unknown_role", f"{where} has the {speaker} {str(name)[:40]!r}")
    for key in _TURN_KEYS & extra.keys():
        del extra[key]
        supply.lost.add(f"turn.{key}")
    if isinstance(value, list | tuple):
        content = supply.typed_parts(value, where)
    elif value is None and extra.get("tool_calls"):
        content = ()
    else:
        text = as_text(value, where)
        calls = _calls(text) if name == CALL and "tool_calls" not in extra else []
        if calls:
            extra["tool_calls"] = calls
        content = () if calls else supply.text_parts(text)
    return Message(role, content, extra_json(extra, where) if extra else ""), name


def own_name(message: Message, names: Mapping[Role, str]) -> str:
    """What a format calls the speaker of a message; ShareGPT has a name of its own for calls of tools."""
    if names["user"] == SHAREGPT["user"] and bare_calls(message):
        return CALL
    return names[message.role]


def bare_calls(message: Message) -> list[dict[str, Any]]:
    """The `{name, arguments}` of an assistant's turn that is calls of tools and nothing else, or nothing."""
    if message.role != "assistant" or message.content or not message.more:
        return []
    more = exactjson.loads(message.more)
    calls = more.get("tool_calls")
    if len(more) != 1 or not isinstance(calls, list):
        return []
    bare: list[Any] = [call.get("function") for call in calls if isinstance(call, dict)]
    fits = all(_is_call(function) for function in bare) and calls == [_wrapped(function) for function in bare]
    return bare if fits else []


def _calls(text: str) -> list[dict[str, Any]]:
    """The tool calls that a text of JSON holds, or nothing where it is anything else: then it stays a text."""
    try:
        value = exactjson.loads(text)
    except ValueError:
        return []
    functions = value if isinstance(value, list) else [value]
    return [_wrapped(function) for function in functions] if all(map(_is_call, functions)) else []


def _wrapped(function: Any) -> dict[str, Any]:
    return {"type": "function", "function": function}


def _is_call(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"name", "arguments"} and isinstance(value["name"], str)


def _spelling(first: Any, names: Mapping[Role, str]) -> Mapping[Role, str]:
    """The names that a talk's first turn goes by: those of its keys, whatever the format's own are."""
    if isinstance(first, dict) and (first.get("from") is None) != (first.get("role") is None):
        return MESSAGES if first.get("from") is None else SHAREGPT
    return names


def _repeats(record: Record, opens: str, found: Sequence[Message]) -> bool:
    """Whether a column holds the very text of the first question."""
    asked = next((message.content for message in found if message.role == "user"), ())
    return len(asked) == 1 and asked[0].text is not None and record.get(opens) == asked[0].text


def _is_empty(value: Any) -> bool:
    return value is None or value == "" or value != value


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
