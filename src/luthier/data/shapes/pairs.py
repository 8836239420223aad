"""Single questions and answers to rows: Alpaca, prompt and completion, plain text, captions of media.

Knows which columns ask and which answer; refuses to know files and lists of turns beyond passing them on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from luthier.data.building.context import Adapter, Context, Record
from luthier.data.shapes import conversations
from luthier.data.shapes.parts import MEDIA_COLUMNS, TOKEN, Supply, Unusable, as_text, finish
from luthier.errors import MediaError
from luthier.schema import Draft, Drop, Message, Part, Target

REASONS = ("missing_prompt", "missing_answer", "missing_media", *conversations.REASONS)
PROMPTS = ("prompt", "question", "query")
COMPLETIONS = ("completion", "response", "answer")
CAPTIONS = ("text", "caption")
IMAGES = ("image", "images", "file_name")
QUESTIONS = {"image": "Describe the image.", "audio": "Transcribe the recording.", "video": "Describe the video."}
"""What is asked about a medium whose table has no column of questions."""

_ENDINGS = {
    "audio": (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".aiff", ".webm"),
    "video": (".mp4", ".m4v", ".mov", ".mkv", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".ogv"),
}
"""Which kind a name in `file_name` has; all others are pictures."""

Reader = Callable[[str, Record], Draft]


def alpaca(context: Context) -> Adapter:
    """`instruction`, `input`, `output`, with `history` (pairs of texts), `system` and media for `<image>` tokens.

    Instruction and input become one text with a line end between; `Row.more` keeps as `input_from` where it begins.
    """

    def read(origin: str, record: Record) -> Draft:
        supply = Supply(context, record)
        found: list[Message] = []
        system = _take(context, record, supply, "system", ("system",))
        if system:
            found.append(Message("system", (Part("text", as_text(system, "system")),)))
        history = _take(context, record, supply, "history", ("history",)) or ()
        if not isinstance(history, list | tuple):
            raise Unusable("not_text", f"history is {type(history).__name__}, not a list of pairs")
        for place, pair in enumerate(history):
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise Unusable("not_text", f"history {place + 1} is not a pair of texts")
            for role, text in zip(("user", "assistant"), pair, strict=True):
                found.append(Message(role, supply.text_parts(as_text(text, f"history {place + 1}"))))  # type: ignore[arg-type]
        instruction = _take(context, record, supply, "instruction", ("instruction",))
        given = _take(context, record, supply, "input", ("input",))
        answer = _take(context, record, supply, "output", ("output",))
        if instruction is None and given is None:
            raise Unusable("missing_prompt", "no text in instruction")
        if answer is None:
            raise Unusable("missing_answer", "no text in output")
        asked = "" if instruction is None else as_text(instruction, "instruction")
        kept = {}
        if given is not None and (text := as_text(given, "input")):
            asked = f"{asked}\n{text}" if asked else text
            kept["input_from"] = len(asked) - len(text)
        found.append(Message("user", supply.text_parts(asked)))
        found.append(Message("assistant", supply.text_parts(as_text(answer, "output"))))
        return finish(context, origin, record, found, supply, kept)

    return _guarded(context, read)


def prompt_completion(context: Context) -> Adapter:
    """A question and its answer, each a text or a list of messages; media without a token come before the question."""

    def read(origin: str, record: Record) -> Draft:
        supply = Supply(context, record)
        asked = _take(context, record, supply, "prompt", PROMPTS)
        answer = _take(context, record, supply, "completion", COMPLETIONS)
        if asked is None or asked == []:
            raise Unusable("missing_prompt", f"no text in {' or '.join(PROMPTS)}")
        if answer is None or answer == []:
            raise Unusable("missing_answer", f"no text in {' or '.join(COMPLETIONS)}")
        found: list[Message] = []
        if isinstance(asked, list):
            found += _messages(asked, supply, "prompt")
        else:
            tokens = any(isinstance(value, str) and TOKEN.search(value) for value in (asked, answer))
            first = () if tokens else tuple(supply.take(kind) for kind in supply.waiting)
            # A question of no words about a picture is the picture alone.
            parts = first if first and asked == "" else (*first, *supply.text_parts(as_text(asked, "prompt")))
            found.append(Message("user", parts))
        if isinstance(answer, list):
            found += _messages(answer, supply, "completion")
        else:
            found.append(Message("assistant", supply.text_parts(as_text(answer, "completion"))))
        return finish(context, origin, record, found, supply, {})

    return _guarded(context, read)


def text(context: Context) -> Adapter:
    """`text`: one message of the assistant, all of which is learned."""

    def read(origin: str, record: Record) -> Draft:
        supply = Supply(context, {})
        value = _take(context, record, supply, "text", ("text",))
        if value is None:
            raise Unusable("missing_answer", "no text in text")
        message = Message("assistant", (Part("text", as_text(value, "text")),))
        return finish(context, origin, record, [message], supply, {})

    return _guarded(context, read)


def image_caption(context: Context) -> Adapter:
    """A picture (or recording) with a text or a label. A text is the assistant's answer, a label `Target.choice`.

    The question is the column `prompt`, or what `QUESTIONS` asks about the kind.
    """
    mapped = context.source.columns

    def read(origin: str, record: Record) -> Draft:
        cells = {name: value for name, value in record.items() if name != "file_name"}
        named, place = record.get("file_name"), False
        if named is not None and "image" not in mapped and cells.get("image") is None and not _has_media(cells, mapped):
            kind = next((kind for kind, names in _ENDINGS.items() if str(named).lower().endswith(names)), "image")
            cells[mapped.get(kind, kind)] = named
            place = True
        supply = Supply(context, cells)
        if place:
            supply.used.add("file_name")
        kinds = supply.waiting
        if not kinds:
            raise Unusable("missing_media", f"nothing in {' or '.join(IMAGES)}")
        asked = _take(context, record, supply, "prompt", ("prompt", "question"))
        question = QUESTIONS[kinds[0]] if asked is None else as_text(asked, "prompt")
        content = (*(supply.take(kind) for kind in kinds), Part("text", question))
        found = [Message("user", content)]
        answer = _take(context, record, supply, "text", CAPTIONS)
        if answer is not None:
            found.append(Message("assistant", (Part("text", as_text(answer, "text")),)))
            return finish(context, origin, record, found, supply, {})
        label = _take(context, record, supply, "label", ("label",))
        if label is None:
            raise Unusable("missing_answer", "no text, caption or label")
        return finish(context, origin, record, found, supply, {}, Target(choice=as_text(label, "label")))

    return _guarded(context, read)


def _has_media(record: Record, mapped: dict[str, str]) -> bool:
    return any(
        record.get(name) for kind, names in MEDIA_COLUMNS.items() for name in (mapped.get(kind, names[0]), *names)
    )


def _guarded(context: Context, read: Reader) -> Adapter:
    def draft(origin: str, record: Record) -> Draft | Drop:
        try:
            return read(origin, record)
        except (Unusable, MediaError) as problem:
            return context.drop(origin, problem.reason, problem.detail)

    return draft


def _take(context: Context, record: Record, supply: Supply, role: str, names: Sequence[str]) -> Any:
    """The value of the mapped column, or of the first that has one; the column is marked as read."""
    mapped = context.source.columns.get(role)
    for name in (mapped,) if mapped else names:
        value = record.get(name)
        if name in record and (value is not None or mapped):
            supply.used.add(name)
        if value is not None and value == value:
            return value
    supply.used.update(name for name in names[:1] if name in record and record[name] is None)
    return None


def _messages(items: list[Any], supply: Supply, where: str) -> list[Message]:
    return [
        conversations.read_turn(item, supply, f"{where} {place + 1}", conversations.MESSAGES)[0]
        for place, item in enumerate(items)
    ]
