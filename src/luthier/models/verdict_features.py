"""What graded media become before they are judged: sound through its own cache, pictures and videos through the senses.

Knows references and what stands for them in a prompt; refuses to know grades and prompts. Nothing that sees is ever
tuned by a verdict stage, so the vectors of pictures and videos are made once.

Shapes: S vectors of a medium, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from luthier.data.media import load_audio
from luthier.data.mediasource import MediaSource
from luthier.errors import ChatError, DataError
from luthier.models.chat import ChatTemplate
from luthier.models.encode import Spelled, Spelling
from luthier.models.features import Features, FeatureStore
from luthier.models.load import Base
from luthier.models.senses.base import Medium, senses_of
from luthier.models.senses.spelling import Speller
from luthier.models.senses.store import VectorStore
from luthier.recipe import Recipe
from luthier.schema import Message, Part, Row


@dataclass
class SeenFeatures:
    """Vectors of pictures and videos (as their frames) in a folder, by reference."""

    folder: Path
    speller: Speller
    template: ChatTemplate
    model: Any
    """The bare base, on its device."""
    encoded = True
    _media: dict[str, tuple[Medium, ...]] = field(default_factory=dict)
    _stores: dict[str, VectorStore] = field(default_factory=dict)

    def prepare(self, parts: Iterable[Part]) -> dict[str, Spelled]:
        """Make what is missing. Returns what stands for each medium, or why it cannot be read.

        Raises MediaError for a medium that cannot be decoded.
        """
        found: dict[str, Spelled] = {}
        for part in dict.fromkeys(parts):
            try:
                found[str(part.media)] = self._spelled(part)
            except ChatError as error:
                found[str(part.media)] = error.reason
        media = [medium for its in self._media.values() for medium in its]
        for kind in dict.fromkeys(medium.kind for medium in media):
            store = VectorStore(self.folder, self.speller.senses, self.speller.source, self.model, kind)
            store.prepare(medium for medium in media if medium.kind == kind)
            self._stores[kind] = store
        return found

    def load(self, reference: str) -> torch.Tensor:
        """(S, D) of a picture, or of a video's frames end to end."""
        vectors = [self._stores[medium.kind].load(medium)[0] for medium in self._media[reference]]
        return torch.cat(vectors)

    def _spelled(self, part: Part) -> Spelling:
        """As in a chat: a video as its frames, each after its time."""
        told = self.speller.told([Message("user", (part,))], replace(self.template, takes_parts=False))
        text = self.speller.spell(told.messages[0].text, told).text
        ids = self.template.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        self.speller.check(ids, told.media)
        self._media[str(part.media)] = told.media
        return Spelling(tuple(ids), tuple(np.flatnonzero(~self.speller.slots(np.array(ids))).tolist()))


def media_parts(rows: Iterable[Row]) -> list[Part]:
    """What rows hold beside words, in order."""
    return [part for row in rows for message in row.messages for part in message.content if part.media]


def verdict_features(
    base: Base,
    recipe: Recipe,
    rows: Iterable[Row],
    data: Callable[[str], bytes],
    folder: Path,
    frozen: bool,
) -> tuple[Features, dict[str, Spelled]]:
    """Features of graded media, in a folder of caches, and what stands for each in a prompt. `frozen`: the encoder of
    sound stays as it is, so that its outputs can be kept.

    Raises DataError where recordings stand beside pictures, MediaError for a medium that cannot be decoded.
    """
    parts = media_parts(rows)
    kinds = {part.type for part in parts}
    if "audio" in kinds and len(kinds) > 1:
        raise DataError(
            f"graded rows hold {' and '.join(sorted(kinds))}, and one stage judges one of them",
            "give recordings and pictures stages of their own",
        )
    if kinds - {"audio"}:
        senses = senses_of(base.model, base.tokenizer, recipe.model.base, recipe.model.revision)
        assert senses is not None, "a base that judges has senses"
        source = MediaSource(data, recipe.data.limits, recipe.data.frames)
        seen = SeenFeatures(folder, Speller(senses, source), ChatTemplate.of(base.tokenizer), base.model)
        return seen, seen.prepare(parts)

    def waveform(reference: str) -> Any:
        return load_audio(data(reference), recipe.data.limits)

    store = FeatureStore(folder, base.family, base.extractor, waveform, base.model, frozen=frozen)
    return store, dict(store.prepare(str(part.media) for part in parts))
