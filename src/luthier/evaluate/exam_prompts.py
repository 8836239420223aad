"""How a question is put to a model, in words: three wordings, plain or as a chat's turns, with solved ones before it.

Plain prompts of the wording `question` are those of lm-evaluation-harness for PIQA, WinoGrande and lettered questions,
so that equal strings are asked. Media are parts of the user's turn, before the question, and are spelled as in lessons.
This module knows strings alone: no tokens and no model.
"""

from __future__ import annotations

import string
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from luthier.data.exams.exam import Exam, ExamItem
from luthier.errors import RequestError
from luthier.models.chat import ChatTemplate
from luthier.models.senses.base import Medium
from luthier.models.senses.spelling import Speller, Told
from luthier.recipe_exam import ExamSettings
from luthier.schema import Message, Part

LETTERS = string.ascii_uppercase
_PROBE = "Answer9"
"""Stands for the answer while a chat is rendered: where it lands, answers begin."""


@dataclass(frozen=True)
class Wording:
    """The words around a question. `cue` ends a plain prompt; a chat is told in `ask_*` what to answer with."""

    head_letters: str
    head_text: str
    question: str
    option: str
    cue: str
    ask_letters: str
    ask_text: str


WORDINGS = {
    "question": Wording(
        "",
        "",
        "Question: {}",
        "{}. {}",
        "Answer:",
        "Answer with the letter of the right option.",
        "",
    ),
    "instruction": Wording(
        "Choose the right answer. Reply with its letter and nothing else.",
        "Reply with the right answer and nothing else.",
        "{}",
        "{}) {}",
        "Reply:",
        "",
        "",
    ),
    "exam": Wording(
        "This question is part of an exam. One option is right.",
        "This question is part of an exam.",
        "{}",
        "({}) {}",
        "The right answer is",
        "Which one is it? Write its letter.",
        "",
    ),
}


@dataclass(frozen=True)
class Asked:
    """One question in one wording and order. `contexts` and `answers` are one an option, in the file's order.

    Context and answer together are the text: a blank between them belongs to the answer.
    """

    prompt: str
    reversed: bool
    contexts: tuple[str, ...]
    answers: tuple[str, ...]
    media: tuple[Medium, ...] = ()
    """Those that the contexts have spelled in them, in order: the same for every option."""


@dataclass(frozen=True)
class Asker:
    """Puts the questions of one exam as its settings say; `shots` are the solved items that stand before each."""

    settings: ExamSettings
    template: ChatTemplate
    partial: bool
    """The question is a sentence with a blank (WinoGrande), scored by what follows the blank, with method text."""
    shots: tuple[ExamItem, ...]
    speller: Speller | None

    @classmethod
    def of(
        cls,
        exam: Exam,
        settings: ExamSettings,
        template: ChatTemplate,
        pool: Exam | None = None,
        speller: Speller | None = None,
    ) -> Asker:
        """`speller` writes media for a base that sees or hears.

        Raises RequestError where the settings cannot be met: no chat template, too many options, too few shots, a
        sentence without words after its blank where these are scored.
        """
        if settings.chat_template and not template.chats:
            raise RequestError(
                f"exam {exam.name}: {template.name} has no chat template", "set chat_template: false for this exam"
            )
        shots = _shots(exam, settings.shots, pool)
        partial = exam.shape == "winogrande" and settings.method == "text"
        for item in (*shots, *exam.items):
            if settings.method != "text":
                _check_letters(exam, item)
            elif partial:
                _check_blank(exam, item)
        return cls(settings, template, partial, shots, speller)

    def ask(self, item: ExamItem) -> Iterator[Asked]:
        """The item in each wording and order: the first wording in the file's order first.

        Raises ChatError for media that the base's template or its senses do not take.
        """
        orders = (False, True) if self.settings.both_orders and self.settings.method != "text" else (False,)
        for prompt in self.settings.prompts:
            for backwards in orders:
                yield self._asked(item, prompt, backwards)

    def _asked(self, item: ExamItem, prompt: str, backwards: bool) -> Asked:
        media: tuple[Medium, ...] = ()
        if self.settings.chat_template:
            stem, media = self._chat(item, prompt, backwards)
        else:
            stem = self._text(item, prompt, backwards)
        # In a chat the template says what stands between the turn's beginning and its first word.
        blank = "" if self.settings.chat_template and not self.partial else " "
        places = range(len(item.options))
        return Asked(
            prompt,
            backwards,
            tuple(stem + self._given(item, option) for option in places),
            tuple(blank + self._answer(item, option, backwards) for option in places),
            media,
        )

    def _answer(self, item: ExamItem, option: int, backwards: bool) -> str:
        """What is scored of an option, by its place in the file."""
        if self.settings.method != "text":
            return LETTERS[len(item.options) - 1 - option if backwards else option]
        if self.partial:
            return item.question[item.question.index("_") + 1 :].strip()
        return item.options[option]

    def _given(self, item: ExamItem, option: int) -> str:
        """What stands before the scored part: where a blank is filled, the sentence up to it and the option.

        What follows the blank is scored, the same words for every option (Trinh and Le 2018, arXiv 1806.02847).
        """
        return item.question[: item.question.index("_")] + item.options[option] if self.partial else ""

    def _solved(self, item: ExamItem) -> str:
        """A shot's answer as an answerer would give it."""
        answer = self._answer(item, item.answer, False)
        return f"{self._given(item, item.answer)} {answer}" if self.partial else answer

    def _text(self, item: ExamItem, prompt: str, backwards: bool) -> str:
        """The plain prompt up to where the answer begins, solved questions before it."""
        blank = "" if self.partial else " "
        solved = [self._body(shot, prompt, False) + blank + self._solved(shot) for shot in self.shots]
        return "\n\n".join([*solved, self._body(item, prompt, backwards)])

    def _chat(self, item: ExamItem, prompt: str, backwards: bool) -> tuple[str, tuple[Medium, ...]]:
        """The rendered chat up to where the assistant's answer begins, solved questions as turns before it; and the
        media that are spelled in it."""
        turns: list[Message] = []
        for shot in self.shots:
            turns += [self._shown(shot, prompt, False), _turn("assistant", self._solved(shot))]
        turns += [self._shown(item, prompt, backwards), _turn("assistant", _PROBE)]
        told = Told(tuple(turns)) if self.speller is None else self.speller.told(turns, self.template)
        text = self.template.write([self.template.turn(turn) for turn in told.messages]).text
        if _PROBE not in text:
            raise RequestError(
                f"the chat template of {self.template.name} does not write the assistant's answer",
                "set chat_template: false for this exam",
            )
        stem = text[: text.rindex(_PROBE)]
        return stem if self.speller is None else self.speller.spell(stem, told).text, told.media

    def _shown(self, item: ExamItem, prompt: str, backwards: bool) -> Message:
        """A user's turn: its media, then the question."""
        return Message("user", (*item.media, Part("text", self._body(item, prompt, backwards))))

    def _body(self, item: ExamItem, prompt: str, backwards: bool) -> str:
        """The question in words: a plain prompt, or a user's turn."""
        wording, chat, shown = WORDINGS[prompt], self.settings.chat_template, self.settings.method != "text"
        head = wording.head_letters if shown else wording.head_text
        if self.partial:
            head = "Fill in the blank." if chat and not head else head
            return f"{head}\n\n{item.question}" if chat else (f"{head}\n\n" if head else "")
        options = reversed(item.options) if backwards else item.options
        lines = [item.before, wording.question.format(item.question)]
        if shown:
            lines += [wording.option.format(letter, text) for letter, text in zip(LETTERS, options, strict=False)]
        if chat:
            lines.append(wording.ask_letters if shown else wording.ask_text)
        else:
            lines.append(wording.cue)
        body = "\n".join(line for line in lines if line)
        return f"{head}\n\n{body}" if head else body


def _shots(exam: Exam, count: int, pool: Exam | None) -> tuple[ExamItem, ...]:
    """The first `count` items of the pool that the exam does not ask (the same question, with an option of it): the
    same for all its questions."""
    if not count:
        return ()
    if pool is None:
        raise RequestError(f"exam {exam.name}: {count} shots, and no pool", "name the source that they come from: pool")
    asked = {(*_task(item), option) for item in exam.items for option in item.options}
    new = (item for item in pool.items if not any((*_task(item), option) in asked for option in item.options))
    found = list(islice(new, count))
    if len(found) < count:
        raise RequestError(
            f"exam {exam.name}: {count} shots, and the pool {pool.name} has {len(found)} items that the exam has not",
            "lower shots, or name a larger pool",
        )
    return tuple(found)


def _task(item: ExamItem) -> tuple[str, ...]:
    """With one option, what makes two items alike: many may ask no more than which sentence is right."""
    return (item.question, item.before, *(part.media or "" for part in item.media))


def _check_letters(exam: Exam, item: ExamItem) -> None:
    if len(item.options) > len(LETTERS):
        raise RequestError(
            f"exam {exam.name}: item {item.id} has {len(item.options)} options, and there are {len(LETTERS)} letters",
            "set method: text for this exam",
        )


def _check_blank(exam: Exam, item: ExamItem) -> None:
    if not item.question.partition("_")[2].strip():
        raise RequestError(
            f"exam {exam.name}: item {item.id} has no words behind a blank (_), and these are what is scored",
            "set method: letters for this exam",
        )


def _turn(role: str, text: str) -> Message:
    return Message(role, (Part("text", text),))  # type: ignore[arg-type]
