"""The Assistant page: a conversation with one of the models, typed or spoken, that a reload does not lose.

Knows buttons and what they do to a conversation; refuses to know engines beyond their interface, and how an answer is
written (`answers.py`).
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from luthier.data.picturefiles import picture_kind
from luthier.engines.base import ChatEngine, ChatRequest
from luthier.errors import LuthierError, RequestError
from luthier.schema import Message, Part
from luthier.serve import describing, look, talk
from luthier.serve.answers import Answer, Answers, follow
from luthier.serve.assistant_parts import Given, Parts
from luthier.serve.pagefiles import taken
from luthier.serve.services import Services
from luthier.serve.spoken import Heard, hear, heard_line
from luthier.serve.store import Conversation, fresh_id, owner_of

_THUMB = (640, 480)


def build_assistant(services: Services, answers: Answers) -> None:
    """The page, inside the `gr.Blocks` that is being built."""
    look.page_head("Assistant", "Ask a tuned model by typing or speaking.")
    if services.chat is None or not services.chat.models():
        look.absent(
            "No chat model is served. Start `luthier serve` with a finished run of a chat recipe, or with --gguf."
        )
        return
    page = _Page(services, services.chat, answers)
    page.lay_out()
    page.wire()


class _Page(Parts):
    """The functions behind the components."""

    def __init__(self, services: Services, engine: ChatEngine, answers: Answers) -> None:
        super().__init__(services.settings.limits, engine.models(), services.describes)
        self.services = services
        self.store = services.store
        self.answers = answers
        self.engine = engine
        self.thumb = functools.lru_cache(maxsize=64)(self._thumb)

    def wire(self) -> None:
        """Which function each button calls. All are private: programs have /v1."""
        given = {self.visitor, self.talk_id, self.editing, self.heard, self.picture, self.box, self.consent}
        given |= self.settings.all()
        shown = [self.turns, self.line, self.box, self.send, self.stop, self.retry, self.leave, self.consent]
        shown += [self.talk_id, self.editing, self.heard, self.heard_line, self.picture, self.preview, self.drop]
        everything = [*shown, self.visitor, self.talks, self.links, self.add, self.reads, *self.settings.all()]

        def press(event: Any, function: Callable[..., Any], inputs: Any, outputs: Any) -> None:
            event(look.guarded(function, self.line), inputs, outputs, **look.PRIVATE)

        look.on_load(look.guarded(self.opened, self.line), {self.visitor}, everything)
        press(self.send.click, self.sent, given, shown)
        press(self.box.submit, self.sent, given, shown)
        press(self.retry.click, self.retried, given, shown)
        press(self.stop.click, self.stopped, {self.visitor, self.talk_id}, [self.line])
        press(self.turns.select, self.edited, {self.visitor, self.talk_id}, shown)
        press(self.leave.click, lambda: self._as_before(), None, shown)
        press(self.mic.stop_recording, self.spoken, {self.visitor, self.mic, self.box}, [*shown, self.mic])
        press(self.add.upload, self.added, {self.visitor, self.add}, shown)
        press(self.drop.click, lambda: self._show_picture(""), None, shown)
        press(self.new.click, self.begun, {self.visitor}, everything)
        press(self.talks.input, self.chosen, {self.visitor, self.talks}, everything)
        press(self.talks.focus, self.listed, {self.visitor}, [self.talks, self.line])
        press(self.forget.click, self.forgotten, {self.visitor, self.talk_id}, everything)
        press(self.export.click, self.exported, {self.visitor, self.talk_id}, [self.links, self.line])
        press(
            self.settings.model.change,
            self.told,
            {self.settings.model, self.box},
            [self.add, self.reads, self.box, self.line],
        )

    # Opening conversations

    def opened(self, given: Given) -> Iterator[Given]:
        """The page is opened or loaded anew: the last conversation, and an answer that is still being written."""
        token = look.token_of(given[self.visitor])
        found = self.store.conversation(owner_of(token))
        shown = self._open(owner_of(token), found)
        yield {self.visitor: token, **{part: value for part, value in shown.items() if part is not self.box}}
        if found is not None:
            yield from self._follow(found, self.answers.find(_key(found)))

    def chosen(self, given: Given) -> Iterator[Given]:
        """Another of the visitor's conversations is opened."""
        owner = self._owner(given)
        found = self.store.conversation(owner, str(given[self.talks]))
        yield self._open(owner, found)
        if found is not None:
            yield from self._follow(found, self.answers.find(_key(found)))

    def begun(self, given: Given) -> Given:
        """A new conversation; the old one is among the visitor's chats."""
        return self._open(self._owner(given), None)

    def forgotten(self, given: Given) -> Given:
        """The conversation is deleted for good, and the one before it opened."""
        owner, id = self._owner(given), given[self.talk_id]
        self.answers.stop(f"{owner}:{id}")
        self.store.conversation_removed(owner, id)
        return self._open(owner, self.store.conversation(owner))

    def listed(self, given: Given) -> Given:
        """The visitor's chats, as they now are."""
        return {self.talks: gr.Dropdown(choices=self._talks(self._owner(given)))}

    def _talks(self, owner: str) -> list[tuple[str, str]]:
        return [(asked[:60] or "(a picture)", id) for id, asked in self.store.conversations(owner)]

    def _open(self, owner: str, found: Conversation | None) -> Given:
        model = found.model if found and found.model in self.models else next(iter(self.models))
        panel = self.settings.updates(replace(found, model=model)) if found else {self.settings.model: model}
        return {
            **self._as_before(),
            **panel,
            **self._about(model),
            self.box: "" if found else self.prompt_of(model),
            self.turns: self._shown(found),
            self.line: look.said(""),
            self.talk_id: found.id if found else "",
            self.talks: gr.Dropdown(choices=self._talks(owner), value=found.id if found else None),
            self.retry: gr.Button(visible=found is not None),
            self.links: "",
        }

    # Asking

    def sent(self, given: Given) -> Iterator[Given]:
        """A question goes to the model; what was spoken is kept beside what was sent."""
        found = self._asked(given)
        yield {**self._as_before(), self.talk_id: found.id}
        yield from self._ask(found)

    def retried(self, given: Given) -> Iterator[Given]:
        """The last question again, with the settings as they are now."""
        found = self.store.conversation(self._owner(given), given[self.talk_id]) if given[self.talk_id] else None
        asked = [place for place, message in enumerate(found.messages) if message.role == "user"] if found else []
        if found is None or not asked:
            yield {self.line: look.said("There is no question yet.", "bad")}
            return
        yield from self._ask(self._with_settings(replace(found, messages=found.messages[: asked[-1] + 1]), given))

    def _asked(self, given: Given) -> Conversation:
        """The conversation with the new question, kept. Raises RequestError."""
        owner, limits = self._owner(given), self.services.settings.limits
        text, picture = look.typed(given[self.box]), str(given[self.picture] or "")
        if not text and not picture:
            raise RequestError("the question is empty", "write or say something first")
        if len(text) > limits.text_chars:
            raise RequestError(f"the question has more than {limits.text_chars:,} characters", "shorten it")
        found = self.store.conversation(owner, given[self.talk_id]) if given[self.talk_id] else None
        found = found or Conversation(fresh_id(), owner)
        if self.answers.find(_key(found)):
            raise RequestError("the answer before is still being written", "wait, or stop it")
        if picture:
            self.store.media(picture)  # raises where it was forgotten meanwhile, with a chat that showed it too
        pictures: tuple[Part, ...] = (Part("image", media=picture),) if picture else ()
        place, kept = given[self.editing], found.messages
        if 0 <= place < len(kept):
            pictures = pictures or tuple(part for part in kept[place].content if part.type == "image")
            kept = kept[:place]
        if len(kept) >= limits.turns:
            raise RequestError(f"the conversation has {len(kept)} turns already", "begin a new chat")
        found = self._with_settings(replace(found, messages=(*kept, talk.user_message(text, pictures))), given)
        if isinstance(given[self.heard], Heard):
            self.store.correction(owner, given[self.heard].corrected(text, bool(given[self.consent])))
        return found

    def _with_settings(self, found: Conversation, given: Given) -> Conversation:
        if given[self.settings.model] not in self.models:
            raise RequestError(f"there is no model {given[self.settings.model]}", "choose one of the list")
        messages = talk.with_system(found.messages, look.typed(given[self.settings.system]))
        found = replace(
            found, model=given[self.settings.model], sampling=self.settings.sampling(given), messages=messages
        )
        self.store.conversation_saved(found)
        return found

    def _ask(self, found: Conversation) -> Iterator[Given]:
        def keep(answer: Answer) -> None:
            if self.store.conversation(found.owner, found.id) is not None:  # else it was deleted meanwhile
                answered = (*found.messages, talk.assistant_message(answer.texts[0]))
                self.store.conversation_saved(replace(found, messages=answered))

        def make(cancel: Any) -> Any:
            def pieces() -> Any:
                request = ChatRequest(found.model, found.messages, found.sampling, self._media(found.messages))
                return self.engine.stream(request, cancel)

            return self.services.waiting.stream(found.owner, pieces, gone=cancel)

        yield from self._follow(found, self.answers.begin(_key(found), [make], keep))

    def _follow(self, found: Conversation, answer: Answer | None) -> Iterator[Given]:
        """The answer as it comes, and the conversation once it is there."""
        if answer is None:
            yield self._at_rest(self.store.conversation(found.owner, found.id))
            return
        for _ in follow(answer):
            yield {
                self.turns: self._shown(found, answer.texts[0]),
                self.line: look.said("Answering …" if answer.texts[0] else "Waiting for its turn …"),
                self.send: gr.Button(visible=False),
                self.stop: gr.Button(visible=True),
                self.retry: gr.Button(visible=False),
            }
        yield {**self._at_rest(self.store.conversation(found.owner, found.id)), self.line: _ending(answer)}

    def _at_rest(self, found: Conversation | None) -> Given:
        return {
            self.turns: self._shown(found),
            self.send: gr.Button(visible=True),
            self.stop: gr.Button(visible=False),
            self.retry: gr.Button(visible=found is not None),
        }

    def _shown(self, found: Conversation | None, writing: str | None = None) -> str:
        """The conversation; under answers of a model that describes, the fields that they hold."""
        described = self.describes.get(found.model) if found else None
        return talk.transcript(found, self.thumb, writing, describing.reader(described) if described else None)

    def stopped(self, given: Given) -> Given:
        """The answer ends where it is; what was written stays."""
        self.answers.stop(f"{self._owner(given)}:{given[self.talk_id]}")
        return {self.line: look.said("Stopping …")}

    # Editing, speaking, pictures

    def edited(self, given: Given, event: gr.EventData) -> Given:
        """An earlier question comes into the box; what followed it is replaced once it is sent."""
        found = self.store.conversation(self._owner(given), given[self.talk_id])
        place = event.turn
        if found is None or not isinstance(place, int) or not 0 <= place < len(found.messages):
            return {self.line: look.said("That question is no longer there.", "bad")}
        return {
            self.box: found.messages[place].text,
            self.editing: place,
            self.leave: gr.Button(visible=True),
            self.line: look.said("You are editing an earlier question: what follows it is replaced when you send it."),
        }

    def spoken(self, given: Given) -> Iterator[Given]:
        """A recording becomes text in the box, to be mended before it is sent."""
        if not given[self.mic]:
            return
        yield {self.line: look.said("Listening …")}
        try:
            heard = hear(self.services, self._owner(given), given[self.mic])
        except LuthierError as error:
            yield {self.line: look.sentence(error), self.mic: None}
            return
        before = look.typed(given[self.box])
        kept = None if before else heard  # beside other words there is no telling which were spoken
        yield {
            self.box: f"{before} {heard.text}".strip(),
            self.heard: kept,
            self.heard_line: gr.HTML(heard_line(kept), visible=kept is not None),
            self.consent: gr.Checkbox(False, visible=kept is not None),
            self.line: look.said("Your words are in the box."),
            self.mic: None,
        }

    def added(self, given: Given) -> Given:
        """A picture, decoded within bounds before anything else is done with it."""
        data = taken(str(given[self.add]))
        self.services.uploads.picture(data, Path(str(given[self.add])).name)
        return self._show_picture(self.store.media_saved(data))

    def _show_picture(self, reference: str) -> Given:
        shown = (
            f'<img class="pic" alt="The picture that will be sent" src="{self.thumb(reference)}">' if reference else ""
        )
        return {
            self.picture: reference,
            self.preview: gr.HTML(f'<div class="preview">{shown}</div>', visible=bool(reference)),
            self.drop: gr.Button(visible=bool(reference)),
            self.line: look.said(""),
        }

    def _media(self, messages: tuple[Message, ...]) -> dict[str, Any]:
        named = {str(part.media) for message in messages for part in message.content if part.media}
        return {name: self.services.uploads.picture(self.store.media(name), "the picture") for name in sorted(named)}

    def _thumb(self, reference: str) -> str:
        """A small copy of a picture: the browser is never sent the bytes that somebody uploaded."""
        picture = self.services.uploads.picture(self.store.media(reference), "the picture")
        picture.thumbnail(_THUMB)
        small = io.BytesIO()
        picture.save(small, "JPEG", quality=85)
        return look.data_address(small.getvalue(), "image/jpeg")

    def _original(self, reference: str) -> str:
        data = self.store.media(reference)
        return look.data_address(data, f"image/{picture_kind(data).lower()}")

    # Small things

    def told(self, given: Given) -> Given:
        """What the chosen model reads, and is asked: its prompt takes the place of another model's, or of nothing."""
        model, box = given[self.settings.model], look.typed(given[self.box])
        own = {"", *map(self.prompt_of, self.describes)}
        return self._about(model) | ({self.box: self.prompt_of(model)} if box in own else {})

    def _about(self, id: str) -> Given:
        model = self.models.get(id)
        pictures = model is not None and "image" in model.reads
        why = "" if pictures else "This model reads no pictures."
        return {
            self.add: gr.UploadButton(interactive=pictures),
            self.reads: f'<div class="quiet">{why}</div>' if why else "",
        }

    def exported(self, given: Given) -> Given:
        """Links that save the conversation."""
        found = self.store.conversation(self._owner(given), given[self.talk_id]) if given[self.talk_id] else None
        if found is None:
            return {self.links: look.said("There is nothing to export yet.")}
        lines = look.download(
            "chat.jsonl", talk.as_jsonl(found, self._original), "application/x-ndjson", "Save as JSON lines"
        )
        page = look.download("chat.md", talk.as_markdown(found), "text/markdown", "Save as Markdown")
        return {self.links: f'<div class="links">{lines} {page}</div>'}

    def _as_before(self) -> Given:
        """The composer, empty."""
        return {
            self.box: "",
            self.editing: -1,
            self.leave: gr.Button(visible=False),
            self.heard: None,
            self.heard_line: gr.HTML("", visible=False),
            self.consent: gr.Checkbox(False, visible=False),
            **self._show_picture(""),
        }

    def _owner(self, given: Given) -> str:
        return look.owner(given[self.visitor])


def _key(found: Conversation) -> str:
    return f"{found.owner}:{found.id}"


def _ending(answer: Answer) -> str:
    if answer.error:
        return look.sentence(answer.error)
    notes = {"length": "The answer was cut at the longest length that the settings allow.", "cancelled": "Stopped."}
    return look.said(notes.get(answer.finishes[0], ""))
