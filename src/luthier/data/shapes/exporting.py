"""Rows to records of other formats. What a format cannot hold is counted by name; nothing leaves unnoticed.

Knows how each format spells turns, tools and media; refuses to know files and tables. Media are named
`media/<sha256>`, relative to where the table's `media/` folder is put. A row that would mean something else is
skipped and counted as `row skipped: ...`. Columns that meant nothing to us come back from `Row.more`.

sharegpt           parts of one text are joined; keys of a turn beside its text stay; media become tokens and columns
messages           everything but a target; ultrachat likewise, with `prompt`
trl                like messages, with typed parts, placeholders and columns of media
openai             like messages, with `image_url` and `input_audio`; video is skipped
alpaca             system, then questions and answers by turns; no tools
prompt_completion  texts for one question and one answer, else lists of messages; the last turn is the answer
text               one text of the assistant alone
image_caption      one question about media, and its answer or choice
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from luthier.data import exactjson
from luthier.data.building.context import Record
from luthier.data.shapes.conversations import MESSAGES, ROLES, SHAREGPT, bare_calls, own_name
from luthier.data.shapes.pairs import QUESTIONS
from luthier.data.shapes.parts import MEDIA_COLUMNS, TOKEN
from luthier.schema import NO_TARGET, Message, Part, Row, Target

_PLURAL = {kind: names[0] for kind, names in MEDIA_COLUMNS.items()}
_OPENAI_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
Losses = Counter[str]


class Skip(Exception):
    """A row that a format cannot hold in any meaningful way."""


def export_rows(rows: Iterable[Row], name: str, losses: Losses) -> Iterator[Record]:
    """Records of the format `name` of `WRITERS`; `losses` counts what was left out, by name."""
    write = WRITERS[name]
    for row in rows:
        lost = Counter[str]()
        if row.target != NO_TARGET and not (name == "image_caption" and row.target == Target(choice=row.target.choice)):
            lost["target"] += 1
        more = exactjson.loads(row.more) if row.more else {}
        try:
            if not row.messages:
                raise Skip("no messages")
            record = write(row, more, lost)
        except Skip as reason:
            losses[f"row skipped: {reason}"] += 1
            continue
        losses.update(lost)
        taken = more.keys() & record.keys()
        lost_columns = {key for key in taken if more[key] != record[key]}
        losses.update(f"column {key}" for key in lost_columns)
        yield {**record, **{key: value for key, value in more.items() if key not in taken}}


def place(part: Part) -> str:
    """Where a part's medium lies beside an exported file."""
    return f"media/{(part.media or '').removeprefix('sha256:')}"


def _sharegpt(row: Row, more: Record, lost: Losses) -> Record:
    record: Record = {}
    names = _names(row.messages, more, SHAREGPT)
    found = list(zip(row.messages, names, strict=True))
    if more.pop("system_column", None) is True and row.messages[0].role == "system":
        first = row.messages[0]
        if len(row.messages) > 1 and not first.more and _flat(first.content):
            record["system"] = _flat(first.content)
            found = found[1:]
    record["conversations"] = [_sharegpt_turn(message, name, lost) for message, name in found]
    return _with_media(record, row.messages)


def _sharegpt_turn(message: Message, name: str, lost: Losses) -> Record:
    calls = bare_calls(message)
    if calls and name == "function_call":
        called = [{"name": call["name"], "arguments": call["arguments"]} for call in calls]
        return {"from": name, "value": json.dumps(called[0] if len(called) == 1 else called, ensure_ascii=False)}
    extra = exactjson.loads(message.more) if message.more else {}
    if not message.content and extra.get("tool_calls"):
        return {**extra, "from": name, "value": None}
    return {**extra, "from": name, "value": _tokens(message, lost)}


def _messages(row: Row, more: Record, lost: Losses) -> Record:
    return {"messages": _chat(row, more, _typed)}


def _ultrachat(row: Row, more: Record, lost: Losses) -> Record:
    record = _messages(row, more, lost)
    asked = next((message for message in row.messages if message.role == "user"), None)
    if "prompt" not in more and asked and len(asked.content) == 1 and asked.content[0].text is not None:
        record["prompt"] = asked.content[0].text
    return record


def _trl(row: Row, more: Record, lost: Losses) -> Record:
    record = {"messages": _chat(row, more, lambda part: {"type": part.type} if part.media else _typed(part), True)}
    return _with_media({**record, "images": []}, row.messages)


def _openai(row: Row, more: Record, lost: Losses) -> Record:
    return {"messages": _chat(row, more, _openai_part)}


def _openai_part(part: Part) -> Record:
    if part.type == "image":
        return {"type": "image_url", "image_url": {"url": place(part)}}
    if part.type == "audio":
        # The bytes are in the media folder; a sender reads them from there and puts base64 in `data`.
        return {"type": "input_audio", "input_audio": {"path": place(part)}}
    if part.type == "video":
        raise Skip("video")
    return _typed(part)


def _alpaca(row: Row, more: Record, lost: Losses) -> Record:
    messages = list(row.messages)
    record: Record = {"instruction": "", "input": "", "output": ""}
    if messages[0].role == "system":
        record["system"] = _tokens(messages.pop(0), lost)
    if not messages or [message.role for message in messages] != ["user", "assistant"] * (len(messages) // 2):
        raise Skip("turns that are not question and answer by turns")
    for message in messages:
        _count_extra(message, lost)
    said = [_tokens(message, lost) for message in messages]
    at = more.pop("input_from", None)
    asked = said[-2]
    if isinstance(at, int) and 0 <= at < len(asked) and (at == 0 or asked[at - 1] == "\n"):
        record["instruction"], record["input"] = asked[: max(at - 1, 0)], asked[at:]
    else:
        record["instruction"] = asked
    record["output"] = said[-1]
    if len(said) > 2:
        record["history"] = [[said[place], said[place + 1]] for place in range(0, len(said) - 2, 2)]
    return _with_media(record, row.messages)


def _prompt_completion(row: Row, more: Record, lost: Losses) -> Record:
    if row.messages[-1].role != "assistant":
        raise Skip("no answer at the end")
    if len(row.messages) < 2:
        raise Skip("no question")
    simple = [message.role for message in row.messages] == ["user", "assistant"]
    if simple and not any(message.more or not _holds(message.content) for message in row.messages):
        asked, answer = (_tokens(message, lost) for message in row.messages)
        return _with_media({"prompt": asked, "completion": answer}, row.messages)
    chat = _chat(row, {}, _typed)
    return {"prompt": chat[:-1], "completion": chat[-1:]}


def _text(row: Row, more: Record, lost: Losses) -> Record:
    if len(row.messages) != 1 or row.messages[0].role != "assistant":
        raise Skip("turns beyond one of the assistant")
    if row.media:
        raise Skip("media")
    _count_extra(row.messages[0], lost)
    return {"text": _joined(row.messages[0].content, lost)}


def _image_caption(row: Row, more: Record, lost: Losses) -> Record:
    asked = row.messages[0]
    content = asked.content
    media = [part for part in content if part.media]
    if asked.role != "user" or not media or content[: len(media)] != tuple(media) or len(content) != len(media) + 1:
        raise Skip("not media and then a question")
    if [message.role for message in row.messages[1:]] not in (["assistant"], []):
        raise Skip("turns beyond a question and its answer")
    _count_extra(asked, lost)
    record = _with_media({}, [asked])
    if content[-1].text != QUESTIONS[media[0].type]:
        record["prompt"] = content[-1].text
    if len(row.messages) == 2:
        _count_extra(row.messages[1], lost)
        record["text"] = _joined(row.messages[1].content, lost)
    elif row.target.choice is not None:
        record["label"] = row.target.choice
    else:
        raise Skip("neither answer nor choice")
    return record


WRITERS: dict[str, Callable[[Row, Record, Losses], Record]] = {
    "sharegpt": _sharegpt,
    "messages": _messages,
    "ultrachat": _ultrachat,
    "alpaca": _alpaca,
    "prompt_completion": _prompt_completion,
    "text": _text,
    "image_caption": _image_caption,
    "trl": _trl,
    "openai": _openai,
}


def _names(messages: Sequence[Message], more: Record, own: dict[Any, str]) -> list[str]:
    """The speakers' names: those they had, where `more` still tells, else the format's own."""
    names = more.get("roles")
    if isinstance(names, list) and len(names) == len(messages):
        fits = all(
            isinstance(name, str) and ROLES.get(name.strip().lower()) == message.role
            for name, message in zip(names, messages, strict=True)
        )
        if fits:
            del more["roles"]
            return names
    return [own_name(message, own) for message in messages]


def _chat(row: Row, more: Record, write: Callable[[Part], Record], typed: bool = False) -> list[Record]:
    """Messages of `{role, content}`; a single text is a string unless `typed`, or unless it reads as a placeholder."""
    turns: list[Record] = []
    # Names from chat logs, such as human, mean nothing to a reader of this format: they stay in their column.
    known = isinstance(more.get("roles"), list) and all(name in _OPENAI_ROLES for name in more["roles"])
    names = _names(row.messages, more if known else {}, MESSAGES)
    for message, name in zip(row.messages, names, strict=True):
        extra = exactjson.loads(message.more) if message.more else {}
        content: Any = [write(part) for part in message.content]
        single = len(content) == 1 and message.content[0].text is not None
        if single and not typed and not TOKEN.search(message.content[0].text or ""):
            content = message.content[0].text
        elif not content and extra.get("tool_calls"):
            content = None
        turns.append({**extra, "role": name, "content": content})
    return turns


def _typed(part: Part) -> Record:
    return {"type": part.type, "path": place(part)} if part.media else {"type": "text", "text": part.text}


def _flat(content: Sequence[Part]) -> str:
    return content[0].text or "" if len(content) == 1 else ""


def _holds(content: Sequence[Part]) -> bool:
    """Whether a text with tokens can be read back as these very parts."""
    kinds = [part.type for part in content]
    neighbours = any(pair == ("text", "text") for pair in pairwise(kinds))
    texts = [part.text or "" for part in content if part.type == "text"]
    empty = len(content) > 1 and "" in texts
    return bool(content) and not neighbours and not empty and not any(TOKEN.search(text) for text in texts)


def _tokens(message: Message, lost: Losses) -> str:
    """The parts as one text, media as tokens. Raises Skip where the text itself holds a token."""
    content = message.content
    if any(TOKEN.search(part.text or "") for part in content):
        raise Skip("a text that holds a placeholder's token")
    if not _holds(content):
        lost["bounds between parts" if content else "empty content"] += 1
    pieces: list[str] = []
    for before, part in zip((None, *content), content, strict=False):
        if part.media:
            pieces.append(f"<{part.type}>")
        else:
            pieces.append(("\n" if before and before.type == "text" else "") + (part.text or ""))
    return "".join(pieces)


def _joined(content: Sequence[Part], lost: Losses) -> str:
    if len(content) != 1:
        lost["bounds between parts"] += 1
    if any(part.media for part in content):
        lost["media"] += 1
    return "\n".join(part.text or "" for part in content if part.type == "text")


def _with_media(record: Record, messages: Sequence[Message]) -> Record:
    for message in messages:
        for part in message.content:
            if part.media:
                record.setdefault(_PLURAL[part.type], []).append(place(part))
    return record


def _count_extra(message: Message, lost: Losses) -> None:
    if message.more:
        lost.update("tool_calls" if key == "tool_calls" else f"a turn's {key}" for key in exactjson.loads(message.more))
