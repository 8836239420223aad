"""Chats with pictures, sound and video as table rows, and toy twins that see them, put together as a stage does it."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import soundfile

from luthier.data.building.rows import TableRow
from luthier.data.mediasource import MediaSource
from luthier.models.attention import use_packed_attention
from luthier.models.chat import ChatTemplate
from luthier.models.chat_model import ChatModel
from luthier.models.lessons import Encoder, Encoding, Lesson
from luthier.models.senses.base import senses_of
from luthier.models.senses.spelling import Speller
from luthier.models.senses.supply import Supply
from luthier.models.toys import build_toy
from luthier.recipe_data import Frames, Limits
from luthier.schema import Message, Part, PartType
from support import chats, films
from support.sightings import picture

TOYS = (
    "toy:phi4-multimodal",
    "toy:qwen2-vl",
    "toy:qwen2.5-vl",
    "toy:qwen3-vl",
    "toy:gemma3-vision",
    "toy:smolvlm",
    "toy:idefics3",
    "toy:llava-onevision",
    "toy:phi3-vision",
)
BLOBS: dict[str, bytes] = {}
SOURCE = MediaSource(BLOBS.__getitem__, Limits(), Frames(rate=2.0, sound=True))


def kept(data: bytes) -> str:
    """Its reference."""
    reference = f"sha256:{hashlib.sha256(data).hexdigest()}"
    BLOBS[reference] = data
    return reference


@cache
def image(width: int, height: int, seed: int = 0) -> Part:
    stream = io.BytesIO()
    picture(width, height, seed).save(stream, "PNG")
    return Part("image", media=kept(stream.getvalue()))


@cache
def sound(seconds: float, seed: int = 0) -> Part:
    stream = io.BytesIO()
    noise = np.random.default_rng(seed).normal(0, 0.1, int(16000 * seconds))
    soundfile.write(stream, noise, 16000, format="FLAC")
    return Part("audio", media=kept(stream.getvalue()))


@cache
def video(frames: int = 15, voice: bool = False) -> Part:
    """At ten frames a second, of which two are looked at."""
    return Part("video", media=kept(films.film(frames, sound=voice)))


def asked(number: int, parts: Sequence[Part | str], answer: str, *more: Message) -> TableRow:
    """A row of one question, words and media, and its answer; `more` turns follow."""
    content = tuple(Part("text", part) if isinstance(part, str) else part for part in parts)
    return chats.row(number, Message("user", content), chats.turn("assistant", answer), *more)


def mixed(kinds: Sequence[PartType]) -> list[TableRow]:
    """Rows of text, of one medium and of several, of every kind there is for these senses; of two turns too."""
    found = [
        asked(0, ["What is one?"], "one two three"),
        asked(1, [image(61, 47), "What is shown?"], "green"),
        asked(2, ["The first", image(50, 90), "the second", image(130, 33), image(30, 30), "?"], "blue red long"),
        asked(3, [video(), "What happens?"], "short answer"),
        asked(
            4,
            [image(40, 44, 1), "How many?"],
            "two",
            Message("user", (Part("text", "And here?"), image(25, 70))),
            chats.turn("assistant", "three pass"),
        ),
    ]
    if "audio" in kinds:
        found += [asked(5, [sound(0.9), "What is said?"], "fail"), asked(6, [sound(1.5, 1), sound(0.4, 2)], "a b")]
    return found


@dataclass
class Seeing:
    """A toy twin as a stage has it, every weight of it tuned and without dropout."""

    model: ChatModel
    tokenizer: Any
    supply: Supply
    encoder: Encoder

    @classmethod
    def of(cls, name: str, seed: int = 0, max_tokens: int = 4096, truncation: str = "reject") -> Seeing:
        model, tokenizer, _ = build_toy(name, seed)
        senses = senses_of(model, tokenizer, name)
        assert senses is not None
        use_packed_attention(model)
        speller = Speller(senses, SOURCE)
        encoder = Encoder(ChatTemplate.of(tokenizer), max_tokens, truncation, speller)
        facts: Any = None  # nothing is saved
        return cls(ChatModel(model, facts, senses=senses).eval(), tokenizer, Supply(senses, SOURCE), encoder)

    def lessons(self, rows: Sequence[TableRow]) -> list[Lesson]:
        """Every row, or the first reason why one has none."""
        found = Encoding()
        made = [lesson for _, lesson in self.encoder.encode(rows, found)]
        assert not found.dropped, found.first
        return [lesson for lesson in made if lesson is not None]
