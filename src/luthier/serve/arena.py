"""The page Side by side: two models answer one prompt, blind and in an order drawn by lot; a vote; the standings.

Who wrote which answer leaves the server after the vote, never before. Knows buttons and ballots; refuses to know
engines beyond their interface, and how votes are counted (`store.py`).
"""

from __future__ import annotations

import random
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from shutil import make_archive
from typing import Any

import gradio as gr

from luthier.engines.base import ChatEngine, ChatRequest, Piece, Sampling, ServedModel
from luthier.errors import DataError, RequestError
from luthier.serve import look, talk
from luthier.serve.answers import Answer, Answers, follow
from luthier.serve.rowsout import write_rows
from luthier.serve.services import Services
from luthier.serve.spoken import Heard, hear, heard_line
from luthier.serve.store import Ballot, Choice, Store, fresh_id
from luthier.serve.waiting import Held

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_VOTES: tuple[tuple[Choice, str], ...] = (
    ("first", "1 · The first is better"),
    ("second", "2 · The second is better"),
    ("tie", "3 · Equally good"),
    ("both_bad", "4 · Both are bad"),
)
_VERDICTS = {"first": "The first was better", "second": "The second was better", "tie": "A tie", "both_bad": "Both bad"}
_CONSENT = "My prompt (and recording), both answers and my vote may be kept as training rows"
_REASON_CHARS = 2000
_FEWEST_PROMPTS = 8
"""An interval drawn from fewer prompts would be far too narrow: from a single one it has no width at all."""
Given = dict[Any, Any]


def build_arena(services: Services, answers: Answers) -> None:
    """The page, inside the `gr.Blocks` that is being built."""
    look.page_head("Side by side", "Two models answer one prompt. You vote before you are told which is which.")
    models = services.chat.models() if services.chat else []
    if services.chat is None or len(models) < 2:
        look.absent(
            "Two chat models are needed for a vote, and there "
            f"{'is one' if models else 'are none'}. Start `luthier serve` with a run of a chat recipe: its stages, "
            "checkpoints and base count as models."
        )
        return
    page = _Page(services, services.chat, answers, models)
    page.lay_out()
    page.wire()


def first_pair(models: Sequence[ServedModel]) -> tuple[str, str]:
    """Two models that differ: the first one beside another stage or run, or a base, before a checkpoint of its own.

    A run's last checkpoint is often its final adapter, and would stand against itself.
    """
    first, *rest = models
    others = [model for model in rest if (model.run, model.stage) != (first.run, first.stage)]
    return first.id, (others or rest)[0].id


def drawn_order(id: str, models: tuple[str, str]) -> tuple[str, str]:
    """The two models in the order in which a ballot of this id shows them: a lot that can be drawn again."""
    return models if random.Random(id).random() < 0.5 else (models[1], models[0])


def standings(store: Store) -> str:
    """The table of who is preferred, once there is a vote."""
    try:
        found = store.standings()
    except DataError as error:
        return look.sentence(error)
    if found is None:
        return '<div class="quiet"><p>The standings appear with the first vote.</p></div>'
    sure = found.prompts >= _FEWEST_PROMPTS
    rows = [
        (
            name,
            f"{one['value']:+.2f}",
            f"{one['ci'][0]:+.2f} to {one['ci'][1]:+.2f}" if sure else f"from {_FEWEST_PROMPTS} prompts on",
            str(one["n"]),
        )
        for name, one in found.strengths.items()
    ]
    first = found.first_wins
    place = f" The answer shown first won {first['value']:.0%} of the decided ones." if first else ""
    many = "1 vote" if found.votes == 1 else f"{found.votes} votes"
    caption = (
        f"{many}, of which {found.both_bad} call both bad (a tie). Strength: log-odds of being preferred to "
        f"the average model.{place}"
    )
    heads = ("Model", "Strength", "95 % interval", "Votes")
    return look.table(caption, heads, rows, (1, 2, 3))


class _Page:
    """Components, and the functions behind them."""

    def __init__(self, services: Services, engine: ChatEngine, answers: Answers, models: Sequence[ServedModel]) -> None:
        self.services = services
        self.store = services.store
        self.engine = engine
        self.answers = answers
        self.models = [model.id for model in models]
        self.pair = first_pair(models)
        self.exports: deque[tempfile.TemporaryDirectory[str]] = deque(maxlen=8)
        """The folders of the last exports; one that falls out is removed."""

    def lay_out(self) -> None:
        self.visitor = look.visitor()
        self.ballot_id, self.heard = gr.State(""), gr.State(None)
        with gr.Row():
            self.left, self.right = (
                gr.Dropdown(self.models, value=model, label=label, filterable=False, min_width=280)
                for model, label in zip(self.pair, ("One model", "The other model"), strict=True)
            )
        with gr.Accordion("Settings of both", open=False), gr.Row():
            most = self.services.settings.limits.max_new_tokens
            self.temperature = gr.Slider(0, 2, Sampling.temperature, step=0.05, label="Temperature")
            self.most = gr.Slider(1, most, Sampling.max_new_tokens, step=1, label="Longest answer in tokens")
        with gr.Column(elem_id="main"):
            self.heard_line = gr.HTML("", visible=False)
            self.box = gr.Textbox(label="The prompt", lines=1, max_lines=10, elem_id="prompt")
            self.mic = gr.Audio(
                sources=["microphone"], type="filepath", label="Speak the prompt", elem_id="mic", buttons=[]
            )
            self.consent = gr.Checkbox(False, label=_CONSENT, elem_id="consent")
            with gr.Row(elem_classes="bar"):
                self.ask = gr.Button("Ask both", variant="primary", elem_id="ask")
                self.stop = gr.Button("Stop", variant="stop", visible=False, elem_id="stop")
            self.line = gr.HTML(look.said(""))
            self.asked = gr.HTML("")
            self.shown: list[Any] = []
            with gr.Row(equal_height=True):
                for place in ("First", "Second"):
                    with gr.Column(min_width=300):
                        self.shown.append(gr.HTML(_answer(place, "")))
            with gr.Column(visible=False) as self.voting:
                self.reason = gr.Textbox(label="Why (optional)", lines=1, max_lines=4, max_length=_REASON_CHARS)
                with gr.Row(elem_classes="bar votes"):
                    self.buttons = [gr.Button(words, elem_id=f"vote-{choice}") for choice, words in _VOTES]
                gr.HTML('<div class="quiet"><p>The keys 1 to 4 vote too.</p></div>')
        gr.HTML('<div class="pagehead"><h2>Standings</h2></div>')
        self.table = gr.HTML("", elem_id="standings")
        with gr.Row(elem_classes="bar"):
            self.export = gr.Button("Export rows", elem_id="export")
            self.file = gr.DownloadButton("Save rows.zip", visible=False, elem_id="rows")

    def wire(self) -> None:
        """Which function each button calls. All are private: programs have /v1."""
        settings = {self.left, self.right, self.temperature, self.most}
        given = {self.visitor, self.ballot_id, self.heard, self.box, self.consent, self.reason, *settings}
        shown = [self.ballot_id, self.heard, self.heard_line, self.box, self.ask, self.stop, self.line, self.asked]
        shown += [*self.shown, self.voting, self.reason, self.table]

        def press(event: Any, function: Callable[..., Any], inputs: Any, outputs: Any) -> None:
            event(look.guarded(function, self.line), inputs, outputs, **look.PRIVATE)

        look.on_load(look.guarded(self.opened, self.line), {self.visitor}, [*shown, self.visitor])
        press(self.ask.click, self.drawn, given, shown)
        press(self.box.submit, self.drawn, given, shown)
        press(self.stop.click, self.stopped, {self.visitor, self.ballot_id}, [self.line])
        press(self.mic.stop_recording, self.spoken, {self.visitor, self.mic, self.box}, [*shown, self.mic])
        press(self.export.click, self.exported, {self.visitor}, [self.file, self.line])
        for button, (choice, _) in zip(self.buttons, _VOTES, strict=True):
            press(button.click, self.vote_of(choice), given, shown)

    def opened(self, given: Given) -> Iterator[Given]:
        """The page is opened or loaded anew: a ballot without its vote is still there."""
        token = look.token_of(given[self.visitor])
        ballot = self.store.ballot(look.owner(token))
        yield {self.visitor: token, self.table: standings(self.store)}
        if ballot is not None and ballot.choice is None:
            yield from self._follow(ballot, self.answers.find(_key(ballot)))

    def spoken(self, given: Given) -> Iterator[Given]:
        """A recording becomes the prompt, to be mended before it is sent."""
        if not given[self.mic]:
            return
        yield {self.line: look.said("Listening …")}
        try:
            heard = hear(self.services, look.owner(given[self.visitor]), given[self.mic])
        except RequestError as error:
            yield {self.line: look.sentence(error), self.mic: None}
            return
        yield {
            self.box: heard.text,
            self.heard: heard,
            self.heard_line: gr.HTML(heard_line(heard), visible=True),
            self.line: look.said("Your words are in the box."),
            self.mic: None,
        }

    def drawn(self, given: Given) -> Iterator[Given]:
        """A new ballot: the order is drawn, both models are asked."""
        owner, text = look.owner(given[self.visitor]), look.typed(given[self.box])
        self._check(given, text)
        before = self.store.ballot(owner)
        if before is not None and self.answers.find(_key(before)):
            raise RequestError("both models are still answering", "wait, or stop them")
        id = fresh_id()
        first, second = drawn_order(id, (given[self.left], given[self.right]))
        sampling = Sampling(max_new_tokens=int(given[self.most]), temperature=float(given[self.temperature]))
        ballot = Ballot(id, owner, (talk.user_message(text, ()),), first, second, sampling)
        self.store.ballot_drawn(ballot)
        if isinstance(given[self.heard], Heard):
            self.store.correction(owner, given[self.heard].corrected(text, bool(given[self.consent])))
        answer = self._begin(ballot)
        yield {self.heard: None, self.heard_line: gr.HTML("", visible=False), self.reason: "", self.box: ""}
        yield from self._follow(ballot, answer)

    def _check(self, given: Given, text: str) -> None:
        """Raises RequestError for what cannot be asked."""
        most = self.services.settings.limits.text_chars
        if not text:
            raise RequestError("the prompt is empty", "write or say something first")
        if len(text) > most:
            raise RequestError(f"the prompt has more than {most:,} characters", "shorten it")
        if given[self.left] == given[self.right] or not {given[self.left], given[self.right]} <= set(self.models):
            raise RequestError("two different models are needed", "choose another one on either side")

    def _begin(self, ballot: Ballot) -> Answer | None:
        def maker(model: str) -> Callable[[Any], Held[Piece]]:
            request = ChatRequest(model, ballot.messages, ballot.sampling)

            def make(cancel: Any) -> Held[Piece]:
                return self.services.waiting.stream(
                    ballot.owner, lambda: self.engine.stream(request, cancel), gone=cancel
                )

            return make

        def keep(answer: Answer) -> None:
            if not answer.cancel.is_set():
                self.store.ballot_answered(ballot.id, *answer.texts)

        return self.answers.begin(_key(ballot), [maker(ballot.first_model), maker(ballot.second_model)], keep)

    def _follow(self, ballot: Ballot, answer: Answer | None) -> Iterator[Given]:
        """Both answers as they come; the vote once they are there."""
        asked = f'<div class="asked"><strong>The prompt</strong>{look.exact(ballot.messages[0].text)}</div>'
        same = {self.ballot_id: ballot.id, self.asked: asked}
        for _ in follow(answer) if answer else ():
            yield {
                **same,
                **dict(
                    zip(self.shown, map(_writing, ("First", "Second"), answer.texts if answer else ()), strict=True)
                ),
                self.ask: gr.Button(visible=False),
                self.stop: gr.Button(visible=True),
                self.voting: gr.Column(visible=False),
                self.line: look.said("Both are asked, one after the other …"),
            }
        found = self.store.ballot(ballot.owner, ballot.id) or ballot
        ready = found.first_answer is not None
        line = look.said("Which is better?" if ready else "There is no vote on answers that are not whole: ask again.")
        yield {
            **same,
            self.shown[0]: _answer("First", found.first_answer or ""),
            self.shown[1]: _answer("Second", found.second_answer or ""),
            self.ask: gr.Button(visible=True),
            self.stop: gr.Button(visible=False),
            self.voting: gr.Column(visible=ready),
            self.line: look.sentence(answer.error) if answer and answer.error else line,
        }

    def stopped(self, given: Given) -> Given:
        """Both answers end where they are; there is no vote on them."""
        self.answers.stop(f"{look.owner(given[self.visitor])}:{given[self.ballot_id]}")
        return {self.line: look.said("Stopping …")}

    def vote_of(self, choice: Choice) -> Callable[[Given], Given]:
        """What the button of this choice does."""

        def vote(given: Given) -> Given:
            owner, id = look.owner(given[self.visitor]), str(given[self.ballot_id])
            before = self.store.ballot(owner, id) if id else None
            consent, reason = bool(given[self.consent]), look.typed(given[self.reason])[:_REASON_CHARS]
            ballot = self.store.vote(owner, id, choice, reason, consent)
            texts = (before.first_answer or "", before.second_answer or "") if before else ("", "")
            kept = "The vote is kept, with the texts." if consent else "The vote is kept, and none of the texts."
            return {
                self.shown[0]: _answer("First", texts[0], ballot.first_model),
                self.shown[1]: _answer("Second", texts[1], ballot.second_model),
                self.voting: gr.Column(visible=False),
                self.line: look.said(f"{_VERDICTS[choice]}. {kept}", "good"),
                self.table: standings(self.store),
            }

        return vote

    def exported(self, given: Given) -> Given:
        """The rows that people agreed to, in one file: all on a machine of one's own, else the visitor's own."""
        alone = self.services.settings.host in LOOPBACK
        place = tempfile.TemporaryDirectory(prefix="luthier-rows-")
        self.exports.append(place)
        counts = write_rows(self.store, Path(place.name) / "rows", "" if alone else look.owner(given[self.visitor]))
        file = make_archive(str(Path(place.name) / "rows"), "zip", place.name, "rows")
        told = [f"{counts[name]['exported']} of {counts[name]['in']} {name}" for name in ("votes", "transcripts")]
        return {
            self.file: gr.DownloadButton(value=file, visible=True),
            self.line: look.said(f"The file holds {' and '.join(told)}; its manifest says what was left out and why."),
        }


def _key(ballot: Ballot) -> str:
    return f"{ballot.owner}:{ballot.id}"


def _answer(place: str, text: str, whose: str = "") -> str:
    name = f' · <span class="whose">{escape(whose)}</span>' if whose else ""
    return f'<div class="answer"><h2>{place} answer{name}</h2>{look.markdown(text)}</div>'


def _writing(place: str, text: str) -> str:
    return f'<div class="answer"><h2>{place} answer</h2><div class="words exact cursor">{escape(text)}</div></div>'
