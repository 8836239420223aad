"""`luthier predict` on a chat run: questions and chats in, answers out, one line each, with a finished stage's adapter.

An input is a text file (one question), a .jsonl of chats (any chat format that recipes read, or {"prompt": TEXT}; media
lie beside it), or a picture, recording or video, about which the run's own question is asked. A chat that ends with an
answer is asked for that answer again. What cannot be read or asked gets its reason in place of an answer, and the
others go on. A finished run is never written to.
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
from luthier.data.shapes.parts import Supply as RecordMedia
from luthier.data.shapes.parts import Unusable
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
    given = Inputs(recipe.data, question or (recipe.task.describe.prompt if describes else ""), alone=not question)
    train = replace(recipe.train, gradient_checkpointing=False, torch_compile=False)
    devices = Devices(recipe.model.dtype)
    base, model = build_chat_model(replace(recipe, train=train), devices, recipe.seed)
    model.load(stage.adapter)
    chats = given.questions(inputs) if inputs else iter([("--question", _question(question))])
    supply = None if base.senses is None else Supply(base.senses, given.source)
    for said in answer_chats(model.language_model, ChatTemplate.of(base.tokenizer), devices, chats, supply):
        given.blobs.clear()
        if "answer" in said:
            said["stage"] = stage.path.name
            if describes:
                said["fields"] = recipe.task.describe.form.read(said["answer"])
        yield said


def answer_chats(
    model: Any,
    template: ChatTemplate,
    devices: Devices,
    chats: Iterable[tuple[str, Row | str]],
    supply: Supply | None = None,
) -> Iterator[dict[str, Any]]:
    """One mapping a chat, in order: input (its name), answer, stopped, tokens; or input and error. `supply` has the
    media of the chats, for a base that sees or hears."""
    generate = Generator(model, template, devices, _TOGETHER, supply)
    longest = int(bare(model).config.get_text_config().max_position_embeddings) - ANSWER_TOKENS
    speller = None if supply is None else Speller(supply.senses, supply.source)
    asked = (_ask(template, speller, name, chat, longest) for name, chat in chats)
    while part := list(islice(asked, _TOGETHER)):
        prompts = [one.prompt for one in part if one.prompt is not None]
        found = iter(generate(prompts, Decoding(ANSWER_TOKENS)))
        for one in part:
            if one.prompt is None:
                yield {"input": one.name, "error": one.error}
                continue
            answer = next(found)
            yield {"input": one.name, "answer": answer.text, "stopped": answer.stopped, "tokens": len(answer.ids)}


def _ask(template: ChatTemplate, speller: Speller | None, name: str, chat: Row | str, longest: int) -> _Asked:
    """`chat` is a row, or the reason why it could not be read."""
    if isinstance(chat, str):
        return _Asked(name, None, chat)
    messages = chat.messages[:-1] if chat.messages and chat.messages[-1].role == "assistant" else chat.messages
    if not messages:
        return _Asked(name, None, "there is no question in it")
    if chat.media and speller is None:
        return _Asked(name, None, "it holds pictures or sound, and this run's base reads text alone")
    try:
        prompt = prompt_of(template, messages, tools_of(chat), speller)
    except ChatError as error:
        return _Asked(name, None, str(error))
    if len(prompt) > longest:
        return _Asked(name, None, f"{len(prompt):,} tokens, and the base reads {longest:,} beside an answer")
    return _Asked(name, prompt)


@dataclass
class Inputs:
    """Files of questions, read one after the other; media as a run reads its data."""

    read: DataConfig = field(default_factory=DataConfig)
    question: str = ""
    """What is asked about a medium; "": what is asked where a table has no questions."""
    alone: bool = True
    """Whether texts are questions by themselves; else only media are asked about."""
    blobs: dict[str, bytes] = field(default_factory=dict)
    """The media of the questions that are being answered, by reference."""

    @property
    def source(self) -> MediaSource:
        return MediaSource(self.blobs.__getitem__, self.read.limits, self.read.frames)

    def questions(self, paths: Sequence[Path]) -> Iterator[tuple[str, Row | str]]:
        """Every question of every file, by name (`file` or `file:line`), or the reason why there is none."""
        for path in paths:
            try:
                if path.suffix == ".jsonl":
                    with path.open("rb") as lines:
                        for number, line in enumerate(lines, 1):
                            if line.strip():
                                yield f"{path}:{number}", self._chat(line, path.parent)
                else:
                    yield str(path), self._whole(path)
            except OSError as error:
                yield str(path), error.strerror or str(error)
            except MediaError as error:
                yield str(path), error.message

    def _whole(self, path: Path) -> Row | str:
        """A file that is one question. Raises OSError, MediaError."""
        size = path.stat().st_size
        if size > MAX_BYTES:
            return f"more than {MAX_BYTES:,} bytes"
        data = path.read_bytes()
        kind = media_kind(data)
        if kind is not None:
            return self._about(kind, data)
        if size > _MOST_TEXT:
            return f"more than {_MOST_TEXT:,} bytes: a question is a text"
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            return f"is neither UTF-8 text ({error.reason} at byte {error.start}) nor a picture, recording or video"
        return _question(text) if self.alone else _BESIDE

    def _about(self, kind: PartType, data: bytes) -> Row:
        """The question about a medium. Raises MediaError for one that cannot be decoded."""
        reference = f"sha256:{sha256(data).hexdigest()}"
        self.blobs[reference] = data
        self.source.load(kind, reference)
        return _row(Part(kind, media=reference), Part("text", self.question or QUESTIONS[kind]))

    def _chat(self, line: bytes, folder: Path) -> Row | str:
        """A line of a .jsonl file. A prompt alone is a question, about the media of its record where there are any;
        beside turns or an answer it is a part of these."""
        if not self.alone:
            return _BESIDE
        try:
            record = orjson.loads(line)
            if not isinstance(record, dict):
                return f"it is a {type(record).__name__}, not an object"
            context = Context(Source(), folder=folder, trusted=True, found=tuple(record), limits=self.read.limits)
            prompt = record.get("prompt")
            if isinstance(prompt, str) and not {"messages", "completion", "conversations"} & record.keys():
                return self._prompted(prompt, RecordMedia(context, record))
            draft = formats.adapter(formats.detect([record]), context)("", record)
        except orjson.JSONDecodeError as error:
            return f"it is not JSON: {error}"
        except Unusable as error:
            return f"{error.reason}: {error.detail}"
        except DataError as error:
            return error.args[0] if error.args else str(error)
        if isinstance(draft, Drop):
            return f"{draft.reason}: {draft.detail}"
        self.blobs.update(draft.blobs)
        return draft.row

    def _prompted(self, prompt: str, media: RecordMedia) -> Row | str:
        found = _question(prompt)
        if isinstance(found, str) or not media.waiting:
            return found
        parts = [media.take(kind) for kind in media.waiting]
        self.blobs.update(media.blobs)
        return _row(*parts, *found.messages[0].content)


_BESIDE = "it is a text, and --question is asked about pictures, recordings and videos"


def _question(text: str) -> Row | str:
    return _row(Part("text", text.strip())) if text.strip() else "it is empty"


def _row(*parts: Part) -> Row:
    return Row("", (Message("user", parts),), NO_TARGET, "", "test", Provenance("predict", ""))
