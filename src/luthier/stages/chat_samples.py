"""A few held-out questions of a chat stage, answered by the model before and after it is trained, for people to read.

The record is samples.jsonl. This module knows nothing of losses and scores.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from luthier.errors import ChatError
from luthier.evaluate.generate import Decoding, Generator, prompt_of
from luthier.evaluate.seeing import Prompt
from luthier.files import read_jsonl, write_jsonl
from luthier.models.chat import ChatTemplate, tools_of
from luthier.models.senses.spelling import Speller
from luthier.recipe import Recipe
from luthier.records import ChatAnswer, ChatSample
from luthier.rundir import RunDir, StageDir
from luthier.schema import Message, Row
from luthier.stages.chat_prepare import PreparedChat
from luthier.stages.chat_rows import rows_at


@dataclass(frozen=True)
class _Question:
    """A held-out chat up to its last answer (`row.messages[end]`), and what asks for that answer."""

    row: Row
    end: int
    prompt: Prompt


def ask_before(ready: PreparedChat, run: RunDir, stage: StageDir, recipe: Recipe) -> None:
    """Have the first held-out questions answered before the stage is trained, once; no file where none are wanted."""
    wanted = min(recipe.evaluate.samples, recipe.evaluate.sample_tokens)
    if ready.held_out is None or not wanted or stage.samples.is_file():
        return
    questions = _questions(ready, run, recipe)
    found = _answers(ready, questions, recipe, "answering before training")
    write_jsonl(stage.samples, (asdict(sample) for sample in map(_sample, questions, found)))


def ask_after(ready: PreparedChat, run: RunDir, stage: StageDir, recipe: Recipe) -> None:
    """The same questions once more, where they were asked before."""
    if not stage.samples.is_file():
        return
    questions = _questions(ready, run, recipe)
    found = _answers(ready, questions, recipe, "answering after training")
    before = read_jsonl(stage.samples)
    write_jsonl(stage.samples, ({**one, "after": asdict(answer)} for one, answer in zip(before, found, strict=True)))


def _questions(ready: PreparedChat, run: RunDir, recipe: Recipe) -> list[_Question]:
    """The first held-out rows that can be asked; the template may refuse half a chat."""
    assert ready.held_out is not None
    template, found = ChatTemplate.of(ready.base.tokenizer), list[_Question]()
    ends = dict(zip(ready.held_out.numbers.tolist(), ready.held_out.lengths.tolist(), strict=True))
    for number, item in rows_at(run.data, ready.held_out.numbers):
        if len(found) == recipe.evaluate.samples:
            break
        question = _last_question(template, ready.speller, item.row, ends[number])
        if question is not None:
            found.append(question)
    return found


def _last_question(template: ChatTemplate, speller: Speller | None, row: Row, length: int) -> _Question | None:
    """The last one whose answer is within the first `length` tokens, which is what the model is scored on."""
    # What nobody asked, such as a text, is no answer.
    answers = [place for place, message in enumerate(row.messages) if place and message.role == "assistant"]
    for end in reversed(answers):
        try:
            prompt = prompt_of(template, row.messages[:end], tools_of(row), speller)
        except ChatError:
            return None
        if len(prompt) < length:
            return _Question(row, end, prompt)
    return None


def _answers(ready: PreparedChat, questions: list[_Question], recipe: Recipe, label: str) -> list[ChatAnswer]:
    template = ChatTemplate.of(ready.base.tokenizer)
    batch = recipe.train.micro_batch_size
    generator = Generator(ready.model.language_model, template, ready.devices, batch, ready.supply)
    found = generator([item.prompt for item in questions], Decoding(recipe.evaluate.sample_tokens), label)
    return [ChatAnswer(answer.text, answer.stopped, len(answer.ids)) for answer in found]


def _sample(question: _Question, before: ChatAnswer) -> ChatSample:
    row, end = question.row, question.end
    turns = [{"role": message.role, "text": _told(message)} for message in row.messages[:end]]
    return ChatSample(row.id, row.provenance.source, turns, row.messages[end].text, before)


def _told(message: Message) -> str:
    """A turn in words, each medium by its reference."""
    parts = (part.text or "" if part.type == "text" else f"[{part.type} {part.media}]" for part in message.content)
    return "\n".join(parts)
