"""Conversations with media on every family: token for token as our generator answers, whatever was read before."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from luthier.data.mediasource import Film
from luthier.engines.base import ChatRequest, Sampling, ServedModel
from luthier.engines.chat_base import ChatBase
from luthier.engines.torch_chat import TorchChat
from luthier.evaluate.generate import Decoding, Generator, prompt_of
from luthier.models.chat import ChatTemplate
from luthier.models.senses.spelling import Speller
from luthier.models.senses.supply import Supply
from luthier.models.text_base import TextBase, load_text_base
from luthier.recipe_model import ModelConfig
from luthier.runtime.devices import Devices
from luthier.schema import Message, Part
from support import seeing

LENGTH = 7
Bench = tuple[TorchChat, TextBase, str]


@pytest.fixture(scope="module", params=seeing.TOYS)
def bench(request: pytest.FixtureRequest) -> Bench:
    model = ServedModel(f"base:{request.param}", "chat", request.param)
    return TorchChat([model]), load_text_base(ModelConfig(base=request.param)), model.id


def asked(*parts: Part | str) -> Message:
    return Message("user", tuple(Part("text", part) if isinstance(part, str) else part for part in parts))


def media_of(messages: list[Message]) -> dict[str, Any]:
    """The decoded media of a conversation, under the names that it has for them."""
    parts = [part for message in messages for part in message.content if part.media]
    return {str(part.media): seeing.SOURCE.load(part.type, str(part.media)) for part in parts}


def served(bench: Bench, messages: list[Message]) -> str:
    request = ChatRequest(bench[2], messages, Sampling(LENGTH, 0), media_of(messages))
    return "".join(piece.text for piece in bench[0].stream(request))


def generated(bench: Bench, messages: list[Message]) -> str:
    """By the generator of samples and exams, from nothing that was read before."""
    base = bench[1]
    assert base.senses is not None
    template, supply = ChatTemplate.of(base.tokenizer), Supply(base.senses, seeing.SOURCE)
    prompt = prompt_of(template, messages, None, Speller(base.senses, seeing.SOURCE))
    generate = Generator(base.model, template, Devices("float32"), supply=supply)
    return generate([prompt], Decoding(LENGTH))[0].text


def conversation(bench: Bench) -> list[Message]:
    """The user's turns: words, a picture, words, two pictures, a video, and sound where the base hears."""
    found = [
        asked("What is one?"),
        asked(seeing.image(61, 47), "What is shown?"),
        asked("And then?"),
        asked("Now", seeing.image(50, 90), "or", seeing.image(61, 47), "?"),
        asked(seeing.video(), "What happens?"),
    ]
    assert bench[1].senses is not None
    return [*found, asked(seeing.sound(0.7), "What is said?")] if "audio" in bench[1].senses.kinds else found


def test_every_turn_is_answered_as_if_all_were_read_anew(bench: Bench) -> None:
    messages: list[Message] = []
    for turn in conversation(bench):
        messages.append(turn)
        answer = served(bench, messages)
        assert answer == generated(bench, messages), f"turn {len(messages)}"
        messages.append(Message("assistant", (Part("text", answer.replace("<", " ") or "one"),)))


def test_a_next_turn_reads_only_what_is_new(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    first = [asked(seeing.image(61, 47), "What is shown?")]
    answer = served(bench, first)
    read: list[int] = []
    inner = ChatBase.logits

    def counted(self: ChatBase, ids: Any, reading: Any) -> torch.Tensor:
        read.append(len(ids))
        return inner(self, ids, reading)

    monkeypatch.setattr(ChatBase, "logits", counted)
    more = [*first, Message("assistant", (Part("text", answer.replace("<", " ") or "one"),)), asked("And then?")]
    assert served(bench, more) == generated(bench, more)
    assert bench[1].senses is not None
    slots = sum(medium.slots for medium in Speller(bench[1].senses, seeing.SOURCE).told(first, _template(bench)).media)
    assert read[0] < slots + 20


def test_another_picture_under_the_same_name_is_another_question(bench: Bench) -> None:
    name = str(seeing.image(40, 44).media)
    pictures = [seeing.SOURCE.load("image", str(seeing.image(40, 44, seed).media)) for seed in (0, 1)]
    question = [asked(seeing.image(40, 44), "What is shown?")]
    served(bench, question)
    [base] = bench[0]._bases.values()
    first, second, again = (base.read(question, {name: one}) for one in (*pictures, pictures[0]))
    assert first != second
    assert first == again, "what is kept has its numbers"


def test_a_base_says_what_clients_may_send(bench: Bench) -> None:
    assert bench[1].senses is not None
    hears = "audio" in bench[1].senses.kinds
    assert bench[0].models()[0].reads == (("text", "image", "audio") if hears else ("text", "image"))
    assert isinstance(media_of([asked(seeing.video())])[str(seeing.video().media)], Film)


def _template(bench: Bench) -> ChatTemplate:
    return ChatTemplate.of(bench[1].tokenizer)
