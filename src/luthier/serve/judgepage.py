"""The page Judge: one recorded answer with its verdict on a scale, or many at once as a table to keep.

Knows buttons and verdicts; refuses to know how a verdict is come by. A recording is kept in memory for a while, so that
it can be judged once more by another model or with another question after its file has gone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from html import escape
from pathlib import Path
from threading import Lock
from time import sleep
from typing import Any, TypeVar

import gradio as gr

from luthier.engines.base import Recording, ServedModel, Verdict, VerdictEngine
from luthier.errors import LuthierError, MediaError, RequestError
from luthier.serve import look
from luthier.serve.judgeparts import told_similar, told_verdict, verdict_table
from luthier.serve.pagefiles import taken
from luthier.serve.services import Services
from luthier.serve.similar import nearest, questions_of
from luthier.serve.uploads import shown
from luthier.serve.waiting import Busy

T = TypeVar("T")

_TOGETHER = 8
"""Recordings of a batch that are judged in one turn, so that others get theirs in between."""
_TRIES, _LONGEST_PAUSE = 20, 5.0
"""How often, and after how many seconds, a batch asks again where all are busy."""
_MOST_KEPT = 16
"""Recordings in memory, one a visitor: of a minute each some 60 MB in all."""
_QUESTION_CHARS = 90
Given = dict[Any, Any]


def build_judge(services: Services) -> None:
    """The page, inside the `gr.Blocks` that is being built."""
    look.page_head("Judge", "A recorded answer to a question: does it pass, and how sure is the model?")
    models = services.verdict.models() if services.verdict else []
    if services.verdict is None or not models:
        look.absent("No verdict model is served. Start `luthier serve` with a run of a verdict recipe.")
        return
    page = _Page(services, services.verdict, models)
    page.lay_out()
    page.wire()


class _Page:
    """Components, and the functions behind them."""

    def __init__(self, services: Services, engine: VerdictEngine, models: Sequence[ServedModel]) -> None:
        self.services = services
        self.engine = engine
        self.models = {model.id: model for model in models}
        self.kept = _Kept()

    def lay_out(self) -> None:
        names, most = list(self.models), self.services.settings.limits.batch_files
        first = next((model.id for model in self.models.values() if model.step is None), names[0])
        self.visitor = look.visitor()
        with gr.Column(elem_id="main"):
            with gr.Row():
                self.model = gr.Dropdown(names, value=first, label="Judged by", filterable=False, min_width=280)
                self.known = gr.Dropdown([], label="A question of the run", min_width=280, elem_id="known")
            self.question = gr.Textbox(label="The question", lines=1, max_lines=6, elem_id="question")
            self.sound = gr.Audio(
                sources=["microphone", "upload"], type="filepath", label="The answer", elem_id="answer", buttons=[]
            )
            self.write = gr.Checkbox(False, label="Also write down what was said", elem_id="write")
            with gr.Row(elem_classes="bar"):
                self.judge = gr.Button("Judge", variant="primary", elem_id="judge")
            self.line = gr.HTML(look.said(""))
            self.verdict = gr.HTML("", elem_id="verdict")
            self.words = gr.HTML("", elem_id="heard")
        with gr.Accordion(f"Many recordings at once (up to {most})", open=False, elem_id="batch"):
            self.files = gr.File(label="Recordings of answers to this question", file_count="multiple", type="filepath")
            with gr.Row(elem_classes="bar"):
                self.judge_all = gr.Button("Judge all", elem_id="judge-all")
            self.batch_line = gr.HTML(look.said(""))
            self.table = gr.HTML("", elem_id="verdicts")

    def wire(self) -> None:
        """Which function each button calls. All are private: programs have /v1."""
        one = {self.visitor, self.model, self.question, self.sound, self.write}
        many = {self.visitor, self.model, self.question, self.files}

        def press(event: Any, function: Callable[..., Any], inputs: Any, outputs: Any, line: Any = self.line) -> None:
            event(look.guarded(function, line), inputs, outputs, **look.PRIVATE)

        opened = look.guarded(self.opened, self.line)
        look.on_load(opened, {self.visitor, self.model}, [self.visitor, self.known, self.line])
        press(self.model.input, self.other_model, {self.model}, [self.known, self.line])
        press(self.known.input, self.question_chosen, {self.model, self.known}, [self.question, self.line])
        press(self.judge.click, self.judged, one, [self.line, self.verdict, self.words])
        press(self.judge_all.click, self.judged_all, many, [self.batch_line, self.table, self.files], self.batch_line)

    def opened(self, given: Given) -> Given:
        """The visitor gets a token where there is none."""
        return {self.visitor: look.token_of(given[self.visitor]), **self.other_model(given)}

    def other_model(self, given: Given) -> Given:
        """The questions of this model's run are offered; by number, so that long ones need not be sent back."""
        try:
            questions, line = questions_of(self._chosen(given)), look.said("")
        except LuthierError as error:  # the question can be typed all the same
            questions, line = [], look.sentence(error)
        choices = [(_cut(question), place) for place, question in enumerate(questions)]
        return {self.known: gr.Dropdown(choices, value=None, visible=bool(choices)), self.line: line}

    def question_chosen(self, given: Given) -> Given:
        """A question of the run goes into the box."""
        questions, place = questions_of(self._chosen(given)), given[self.known]
        if not isinstance(place, int) or not 0 <= place < len(questions):
            raise RequestError("this question is not of the model's run", "choose one of the list")
        return {self.question: questions[place], self.line: look.said("")}

    def judged(self, given: Given) -> Iterator[Given]:
        """One recording's verdict, on the scale and beside what people gave its like; then its words, if wanted."""
        owner, model, question = self._asked(given)
        if not given[self.sound]:
            raise RequestError("there is no recording", "record an answer, or upload one")
        yield {self.line: look.said("Judging …"), self.verdict: "", self.words: ""}
        recording = self.kept.of(owner, str(given[self.sound]), self._read)
        verdict = self._ask(owner, model, [recording], question)[0]
        if verdict.error or verdict.p_pass is None:
            raise RequestError(f"this answer cannot be judged: {verdict.error}", "record it anew")
        sure = verdict.p_pass if verdict.p_pass_calibrated is None else verdict.p_pass_calibrated
        told = told_verdict(verdict, self.engine.zone(model.id)) + _beside(model, sure)
        yield {self.line: look.said("Judged.", "good"), self.verdict: told}
        if given[self.write]:
            yield {self.words: look.said("Writing down what was said …")}
            yield {self.words: self._heard(owner, recording)}

    def judged_all(self, given: Given) -> Iterator[Given]:
        """A table of verdicts that grows, and the same as CSV once all are there. A file that fails stops no other."""
        owner, model, question = self._asked(given)
        paths, most = [str(path) for path in given[self.files] or []], self.services.settings.limits.batch_files
        if not 0 < len(paths) <= most:
            raise RequestError(f"there are {len(paths)} recordings, and a batch has 1 to {most}", "choose others")
        found: list[Verdict] = []
        for begin in range(0, len(paths), _TOGETHER):
            found += self._judge_files(owner, model, paths[begin : begin + _TOGETHER], question)
            line = look.said(f"{len(found)} of {len(paths)} …")
            yield {self.batch_line: line, self.table: verdict_table(found, model.id, False)}
        failed = sum(bool(one.error) for one in found)
        told = f"{len(found)} recordings, of which {failed} could not be judged: each says why."
        yield {
            self.batch_line: look.said(told if failed else f"{len(found)} recordings judged.", "good"),
            self.table: verdict_table(found, model.id, True),
            self.files: None,
        }

    def _judge_files(self, owner: str, model: ServedModel, paths: Sequence[str], question: str) -> list[Verdict]:
        """One verdict a file, in order."""
        read: list[Recording | Verdict] = []
        for path in paths:
            name = shown(Path(path).name)
            try:
                read.append(_patient(partial(self._read, path)))
            except Busy:
                raise
            except RequestError as error:
                read.append(Verdict(name, error=_reason(error)))
        recordings = [one for one in read if isinstance(one, Recording)]
        judged = iter(_patient(lambda: self._ask(owner, model, recordings, question)) if recordings else ())
        return [next(judged) if isinstance(one, Recording) else one for one in read]

    def _asked(self, given: Given) -> tuple[str, ServedModel, str]:
        """Who asks which model what."""
        question, most = look.typed(given[self.question]), self.services.settings.limits.text_chars
        if len(question) > most:
            raise RequestError(f"the question has more than {most:,} characters", "shorten it")
        return look.owner(given[self.visitor]), self._chosen(given), question

    def _chosen(self, given: Given) -> ServedModel:
        model = self.models.get(given[self.model])
        if model is None:
            raise RequestError("this model is not served", "choose one of the list")
        return model

    def _read(self, path: str) -> Recording:
        """A file that the browser sent, decoded within bounds."""
        name = shown(Path(path).name)
        try:
            return Recording(name, self.services.uploads.sound(taken(path), name).wave_L)
        except FileNotFoundError as error:
            raise RequestError("the recording is no longer here", "record or choose it again") from error

    def _ask(self, owner: str, model: ServedModel, recordings: Sequence[Recording], question: str) -> list[Verdict]:
        return self.services.waiting.call(owner, lambda: self.engine.judge(model.id, recordings, question))

    def _heard(self, owner: str, recording: Recording) -> str:
        """What was said, or why nobody can tell; the verdict stands either way."""
        try:
            found = self.services.waiting.call(owner, lambda: self.services.speech.transcribe(recording.wave))
        except LuthierError as error:
            return look.sentence(error)
        text = found.text.strip() or found.note or "Nobody was heard in the recording."
        return f'<div class="heard"><strong>Heard</strong> ({escape(found.engine)}): {escape(text)}</div>'


class _Kept:
    """The recording that each visitor had judged last, decoded."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._of: OrderedDict[str, tuple[str, Recording]] = OrderedDict()

    def of(self, owner: str, path: str, read: Callable[[str], Recording]) -> Recording:
        with self._lock:
            before, recording = self._of.get(owner, ("", None))
        if recording is None or before != path:
            recording = read(path)
        with self._lock:
            self._of[owner] = path, recording
            self._of.move_to_end(owner)
            while len(self._of) > _MOST_KEPT:
                self._of.popitem(last=False)
        return recording


def _beside(model: ServedModel, p: float) -> str:
    """What similar answers got, or why that cannot be told; the verdict stands either way."""
    try:
        return told_similar(nearest(model, p), model.step is None)
    except LuthierError as error:
        return look.sentence(error)


def _patient(function: Callable[[], T]) -> T:
    """What the function returns; where all are busy it is asked again, and again. Raises Busy at last."""
    for _ in range(_TRIES):
        try:
            return function()
        except Busy as error:
            sleep(min(error.retry_after, _LONGEST_PAUSE))
    return function()


def _reason(error: RequestError) -> str:
    return error.detail if isinstance(error, MediaError) else error.message


def _cut(question: str) -> str:
    line = " ".join(question.split())
    return line if len(line) <= _QUESTION_CHARS else f"{line[: _QUESTION_CHARS - 1]}…"
