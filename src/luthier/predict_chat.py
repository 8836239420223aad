"""`luthier predict` on a chat run: questions and chats in, answers out, one line each, with a finished stage's adapter.

An input is a text file (one question), a .jsonl of chats (any chat format that recipes read, or {"prompt": TEXT}; media
lie beside it), or a picture, recording or video, of which the run's own question is asked. A chat that ends with an
answer is asked for that answer again. What cannot be read or asked gets its reason in place of an answer, and the others
go on. A finished run is never written to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from luthier.data import formats
from luthier.data.building.context import Context
from luthier.data.mediakind import media_kind
from luthier.data.mediasource import MediaSource
from luthier.data.reading.places import MAX_BYTES
from luthier.data.shapes.pairs import QUESTIONS
from luthier.data.shapes.parts import MEDIA_NAMES, Unusable
from luthier.data.shapes.parts import Supply as RecordMedia
from luthier.errors import ChatError, DataError, MediaError, RequestError
from luthier.evaluate.generate import Decoding, Generator, prompt_of
from luthier.evaluate.seeing import Prompt
from luthier.models.adapters import bare
from luthier.models.chat import ChatTemplate, tools_of
from luthier.models.senses.spelling import Speller
from luthier.models.senses.supply import Supply
from luthier.recipe import Recipe
from luthier.recipe_data import DataConfig, Source
from luthier.rundir import StageDir
from luthier.runtime.devices import Devices
from luthier.schema import NO_TARGET, Drop, Message, Part, PartType, Provenance, Row
from luthier.stages.chat_prepare import build_chat_model

ANSWER_TOKENS = 512
"""The longest answer; `stopped` is false where it was cut off there."""
_TOGETHER = 8
_MOST_TEXT = 2**24
"""A larger text is no question."""


@dataclass(frozen=True)
class _Asked:
    """One question: `prompt` is what the model reads, or None with the reason why there is none."""

    name: str
    prompt: Prompt | None
    error: str = ""


@dataclass
class Inputs:
    """Files of questions, read one after the other as a run reads its data."""

    read: DataConfig = field(default_factory=DataConfig)
    question: str = ""
    """What is asked about a medium; "" asks what tables without questions ask."""
    blobs: dict[str, bytes] = field(default_factory=dict)
    """The media of the questions that are being answered, by reference."""

    @property
    def source(self) -> MediaSource:
        return MediaSource(self.blobs.__getitem__, self.read.limits, self.read.frames)

def answers(stage: StageDir, recipe: Recipe, inputs: Sequence[Path], question: str) -> Iterator[dict[str, Any]]:
    """One mapping per question, in order: input, answer, stopped, tokens, stage, and of a describe stage `fields` (null
    where the answer is not in its form); or input and error. `question` is asked by itself, or about each medium.

    Raises RequestError where there is no question.
    """
    if not inputs and not question:
        raise RequestError(
            "predict: nothing to answer",
            "give files of questions or chats, pictures, recordings or videos, or --question TEXT alone",
        )
    describes = recipe.task.kind == "describe"
    given = Inputs(recipe.data, question or (recipe.task.describe.prompt if describes else ""))
    train = replace(recipe.train, gradient_checkpointing=False, torch_compile=False)
    devices = Devices(recipe.model.dtype)
    base, model = build_chat_model(replace(recipe, train=train), devices, recipe.seed)
    model.load(stage.adapter)
    chats = given.questions(inputs, alone=not question) if inputs else iter([("--question", _question(question))])
    supply = None if base.senses is None else Supply(base.senses, given.source)
    for said in answer_chats(model.language_model, ChatTemplate.of(base.tokenizer), devices, chats, supply):
        given.blobs.clear()
        if "answer" in said:
            said["stage"] = stage.path.name
            if describes:
                said["fields"] = recipe.task.describe.form.read(said["answer"])
        yield said


def answer_chats(
    model: Any, template: ChatTemplate, devices: Devices, chats: Iterable[tuple[str, Row | str]]
) -> Iterator[dict[str, Any]]:
    """One mapping a chat, in order: input (its name), answer, stopped, tokens; or input and error."""
    generate = Generator(model, template, devices, _TOGETHER)
    longest = int(bare(model).config.get_text_config().max_position_embeddings) - ANSWER_TOKENS
    asked = (_ask(template, name, chat, longest) for name, chat in chats)
    while part := list(islice(asked, _TOGETHER)):
        prompts = [one.prompt for one in part if one.prompt is not None]
        found = iter(generate(prompts, Decoding(ANSWER_TOKENS)))
        for one in part:
            if one.prompt is None:
                yield {"input": one.name, "error": one.error}
                continue
            answer = next(found)
            yield {"input": one.name, "answer": answer.text, "stopped": answer.stopped, "tokens": len(answer.ids)}


def _ask(template: ChatTemplate, name: str, chat: Row | str, longest: int) -> _Asked:
    """`chat` is a row, or the reason why it could not be read."""
    if isinstance(chat, str):
        return _Asked(name, None, chat)
    messages = chat.messages[:-1] if chat.messages and chat.messages[-1].role == "assistant" else chat.messages
    if not messages:
        return _Asked(name, None, "there is no question in it")
    if chat.media:
        return _Asked(name, None, "it holds pictures or sound, and this run's base reads text alone")
    try:
        prompt = prompt_ids(template, messages, tools_of(chat))
    except ChatError as error:
        return _Asked(name, None, str(error))
    if len(prompt) > longest:
        return _Asked(name, None, f"{len(prompt):,} tokens, and the base reads {longest:,} beside an answer")
    return _Asked(name, prompt)


def read_questions(inputs: Sequence[Path]) -> Iterator[tuple[str, Row | str]]:
    """Every question of every file, by name (`file` or `file:line`), or the reason why there is none."""
    for path in inputs:
        try:
            if path.stat().st_size > _MOST_BYTES and path.suffix != ".jsonl":
                yield str(path), f"more than {_MOST_BYTES:,} bytes: a question is a text"
            elif path.suffix == ".jsonl":
                with path.open("rb") as lines:
                    for number, line in enumerate(lines, 1):
                        if line.strip():
                            yield f"{path}:{number}", _chat(line)
            else:
                yield str(path), _question(path.read_bytes().decode("utf-8-sig"))
        except OSError as error:
            yield str(path), error.strerror or str(error)
        except UnicodeDecodeError as error:
            yield str(path), f"is not UTF-8 text ({error.reason} at byte {error.start})"


def _question(text: str) -> Row | str:
    if not text.strip():
        return "it is empty"
    return Row("", (Message("user", (Part("text", text.strip()),)),), NO_TARGET, "", "test", Provenance("predict", ""))


def _chat(line: bytes) -> Row | str:
    """A line of a .jsonl file. A prompt alone is a question; beside turns or an answer it is a part of these."""
    try:
        record = orjson.loads(line)
        if not isinstance(record, dict):
            return f"it is a {type(record).__name__}, not an object"
        if isinstance(record.get("prompt"), str) and not {"messages", "completion", "conversations"} & record.keys():
            return _question(record["prompt"])
        read = formats.adapter(formats.detect([record]), Context(Source(), found=tuple(record)))
        draft = read("", record)
    except orjson.JSONDecodeError as error:
        return f"it is not JSON: {error}"
    except DataError as error:
        return error.args[0] if error.args else str(error)
    return f"{draft.reason}: {draft.detail}" if isinstance(draft, Drop) else draft.row
