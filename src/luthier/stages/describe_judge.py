"""The held-out pictures of a describe stage: described before and after training, read by the form, scored by field.

A picture is asked about with the very ids with which its row's lesson begins. What is true of it is what its own row
says, read by the same form. Answers are greedy. Knows nothing of how a model reads pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.assess.described import Constants, Values, constant_scores, row_scores
from luthier.console import say
from luthier.data.table import iter_rows
from luthier.errors import LuthierError
from luthier.evaluate.generate import Decoding, Generator
from luthier.evaluate.seeing import Prompt
from luthier.files import read_jsonl, write_jsonl
from luthier.models.chat import ChatTemplate
from luthier.models.lessons import Lesson, Lessons
from luthier.outcome.describescores import describe_scores
from luthier.recipe import Recipe
from luthier.recipe_describe import AnswerForm
from luthier.records import DescribedAnswer, DescribePrediction
from luthier.rundir import RunDir, StageDir
from luthier.schema import Row
from luthier.stages.chat_prepare import PreparedChat
from luthier.stages.chat_rows import rows_at

_SPARE = 1.25
"""Tokens that an answer may have for each token of the longest true one."""


@dataclass(frozen=True)
class Question:
    """A held-out picture: what is asked about it, and what is true."""

    id: str
    source: str
    group: str
    prompt: Prompt
    truth: Values


@dataclass(frozen=True)
class Describing:
    """The held-out pictures of a stage, and what may be said of them without a look."""

    ready: PreparedChat
    recipe: Recipe
    form: AnswerForm
    constants: Constants
    questions: list[Question]
    longest: int
    """Tokens that an answer may have."""

    @classmethod
    def of(cls, ready: PreparedChat, run: RunDir, recipe: Recipe) -> Describing | None:
        """None where nothing that could be described was held out. Raises DataError where no training row is in the
        form, which is better known before training."""
        form = recipe.task.describe.form
        rows = (item.row for item in iter_rows(run.data, {"split": "train"}))
        mine = (row for row in rows if row.provenance.source in recipe.data.train)
        constants = Constants.of(form, [truth for row in mine if (truth := _truth(form, row)) is not None])
        questions = [] if ready.held_out is None else _questions(ready.held_out, run, recipe, form)
        if not questions:
            say("no held-out row is a description: give data.test or data.validation_fraction, or nothing is scored")
            return None
        longest = max(_longest(lessons) for lessons in (ready.lessons, ready.held_out) if lessons is not None)
        return cls(ready, recipe, form, constants, questions, int(_SPARE * longest) + 1)

    def before(self, stage: StageDir) -> None:
        """Describe the pictures before the stage is trained, once, where the recipe asks for it."""
        if self.recipe.evaluate.describe_before and not stage.described_before.is_file():
            write_jsonl(stage.described_before, self._answers("describing before training"))

    def judge(self, stage: StageDir) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Lines of predictions.jsonl, and scores."""
        before = {}
        if stage.described_before.is_file():
            before = {line["id"]: line["answer"] for line in read_jsonl(stage.described_before)}
            if before.keys() != {question.id for question in self.questions}:
                raise LuthierError(
                    f"{stage.described_before}: its pictures are not those that are held out now",
                    "the table or the tokenizer changed since the run began: begin a new run",
                )
        answers = self._answers("describing held-out pictures")
        found = [
            self._prediction(question, answer, before.get(question.id))
            for question, answer in zip(self.questions, answers, strict=True)
        ]
        settings = self.recipe.evaluate
        scores = describe_scores(found, self.form, resamples=settings.resamples, seed=self.recipe.seed)
        return [one.to_json() for one in found], dict(scores)

    def _answers(self, label: str) -> list[dict[str, Any]]:
        """`id`, `answer` and `stopped` of every picture, in order."""
        ready, layout = self.ready, self.ready.layout
        widest = max(len(question.prompt) for question in self.questions) + self.longest
        batch = max(1, min(layout.micro_rows, layout.micro_tokens // widest))
        template = ChatTemplate.of(ready.base.tokenizer)
        generator = Generator(ready.model.language_model, template, ready.devices, batch, ready.supply)
        said = generator([question.prompt for question in self.questions], Decoding(self.longest), label)
        return [
            {"id": question.id, "answer": answer.text, "stopped": answer.stopped}
            for question, answer in zip(self.questions, said, strict=True)
        ]

    def _prediction(self, question: Question, said: dict[str, Any], before: str | None) -> DescribePrediction:
        after = self._read(question, said["answer"])
        return DescribePrediction(
            id=question.id,
            source=question.source,
            group=question.group,
            answer=after.answer,
            stopped=said["stopped"],
            read=after.read,
            truth=dict(question.truth),
            scores=after.scores,
            constant=constant_scores(self.form, self.constants, question.truth),
            before=None if before is None else self._read(question, before),
        )

    def _read(self, question: Question, answer: str) -> DescribedAnswer:
        read = self.form.read(answer)
        return DescribedAnswer(answer, read, row_scores(self.form, self.constants, read, question.truth))


def _questions(lessons: Lessons, run: RunDir, recipe: Recipe, form: AnswerForm) -> list[Question]:
    """The first held-out rows whose one answer is in the form, and was encoded whole."""
    found, place = list[Question](), {number: i for i, number in enumerate(lessons.numbers.tolist())}
    for number, item in rows_at(run.data, lessons.numbers):
        truth = _truth(form, item.row)
        if truth is None:
            continue
        row = item.row
        prompt = _prompt(lessons[place[number]])
        found.append(Question(row.id, row.provenance.source, row.group or row.id, prompt, truth))
        if len(found) == recipe.evaluate.describe_rows:
            break
    return found


def _truth(form: AnswerForm, row: Row) -> Values | None:
    """What a row says by its only answer, its last turn; None for other rows."""
    roles = [message.role for message in row.messages]
    if roles.count("assistant") != 1 or roles[-1] != "assistant" or len(roles) < 2:
        return None
    return form.read(row.messages[-1].text)


def _prompt(lesson: Lesson) -> Prompt:
    """What stands before the answer: media are in the user's turns alone."""
    begin = int(np.flatnonzero(lesson.weight_L)[0])
    return Prompt(lesson.ids_L[:begin].tolist(), lesson.media)


def _longest(lessons: Lessons) -> int:
    """Tokens that are learned in the row with most of them."""
    learned = np.concatenate([[0], np.cumsum(np.asarray(lessons.weight_T) > 0)])
    return int(np.diff(learned[np.asarray(lessons.starts)]).max())
