"""Where batches take their media from: prepared anew for the encoder, or as vectors that were made before.

Knows references and draws of augmentation; refuses to know rows' texts, ids and losses.

Shapes: M slots of a batch, D model width, K layers that take vectors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from luthier.data.augment import Draw, augment, changes
from luthier.data.mediasource import Facts, MediaSource
from luthier.errors import DataError, MediaError
from luthier.models.senses.base import Medium, Prepared, Senses
from luthier.models.senses.store import VectorStore, tuned
from luthier.recipe_data import Augmentation
from luthier.schema import PartType

__all__ = ["Draw", "MediaBatch", "Medium", "Supply"]


@dataclass
class MediaBatch:
    """The media of one forward pass in the order of their slots, each stored or live; empty for rows of text alone."""

    slots: tuple[int, ...] = ()
    """Vectors of each medium."""
    which: tuple[int, ...] = ()
    """Of each medium its place in `prepared`; -1 where it is stored. Equal media share a place."""
    stored_KMD: torch.Tensor | None = None
    """Vectors of the stored ones, end to end."""
    prepared: tuple[Prepared, ...] = ()

    def to(self, device: Any) -> MediaBatch:
        """The same on another device."""
        stored_KMD = None if self.stored_KMD is None else self.stored_KMD.to(device, non_blocking=True)
        return replace(self, stored_KMD=stored_KMD, prepared=tuple(one.to(device) for one in self.prepared))

    def vectors(self, senses: Senses, model: Any) -> torch.Tensor | None:
        """(K, M, D) of all media in the order of their slots; None where there is none.

        Live ones go through the bare `model`, with gradients where their encoder or projector is tuned. Raises
        DataError where it makes more or fewer vectors than a medium has slots.
        """
        if not self.prepared:
            return self.stored_KMD
        live = self._encode(senses, model)
        parts: list[torch.Tensor] = []
        begin = 0
        for count, which in zip(self.slots, self.which, strict=True):
            if which >= 0:
                parts.append(live[which])
            elif self.stored_KMD is not None:
                parts.append(self.stored_KMD[:, begin : begin + count].to(live[0].dtype))
                begin += count
        return torch.cat(parts, dim=1)

    def _encode(self, senses: Senses, model: Any) -> list[torch.Tensor]:
        """(K, S, D) of each of `prepared`."""
        found: dict[int, torch.Tensor] = {}
        for kind in dict.fromkeys(one.kind for one in self.prepared):
            places = [place for place, one in enumerate(self.prepared) if one.kind == kind]
            with nullcontext() if tuned(senses, model, kind) else torch.no_grad():
                made = senses.encode(model, [self.prepared[place] for place in places])
            found.update(zip(places, made, strict=True))
        for place, one in enumerate(self.prepared):
            if found[place].shape[1] != one.slots:
                raise DataError(
                    f"the encoder makes {found[place].shape[1]} vectors of {one.kind} where {one.slots} were foreseen",
                    "look at the base's processor settings: they are not those of its encoder",
                )
        return [found[place] for place in range(len(self.prepared))]


@dataclass
class Supply:
    """The media of a table for one base. `stores` hold vectors of kinds whose encoder and projector are frozen."""

    senses: Senses
    source: MediaSource
    augmentation: Augmentation = field(default_factory=Augmentation)
    stores: Mapping[PartType, VectorStore] = field(default_factory=dict)

    def batch(
        self, media: Sequence[Medium], draws: Sequence[Draw] | None = None, rows: Sequence[str] = ()
    ) -> MediaBatch:
        """The media of a pass. With `draws` (training rows) they are augmented as the recipe says.

        Media that are changed are prepared anew; others are stored vectors where a store has them. `rows` are the ids
        of the rows that they are of, for messages. Raises MediaError for a medium that cannot be decoded, DataError
        for one whose vectors are not as many as its row has slots.
        """
        which: list[int] = []
        stored: list[torch.Tensor] = []
        prepared: list[Prepared] = []
        places: dict[tuple[PartType, str, str, Draw | None], int] = {}
        for number, medium in enumerate(media):
            draw = self._draw(medium, draws[number]) if draws else None
            store = self.stores.get(medium.kind)
            of = f"row {rows[number]}: " if rows else ""
            if draw is None and store is not None and medium in store:
                stored.append(store.load(medium))
                which.append(-1)
                _check(of, medium, stored[-1].shape[1])
                continue
            key = medium.kind, medium.reference, medium.mode, draw
            if key not in places:
                places[key] = len(prepared)
                prepared.append(self._prepare(of, medium, draw))
            which.append(places[key])
            _check(of, medium, prepared[which[-1]].slots)
        stored_KMD = torch.cat(stored, dim=1) if stored else None  # the one copy: out of the mapped file
        return MediaBatch(tuple(medium.slots for medium in media), tuple(which), stored_KMD, tuple(prepared))

    def _draw(self, medium: Medium, draw: Draw) -> Draw | None:
        """What a medium is changed by, if at all: the frames of a film in one way, wherever they stand in the row."""
        if not changes(medium.kind, self.augmentation):
            return None
        film, _, part = medium.reference.partition("#")
        return replace(draw, place=int(film[-12:], 16)) if part.startswith("frame=") else draw

    def _prepare(self, of: str, medium: Medium, draw: Draw | None) -> Prepared:
        try:
            found = self.source.load(medium.kind, medium.reference)
        except MediaError as error:
            raise MediaError(error.reason, f"{of}{medium.reference}: {error.detail}") from error
        if draw is not None:
            settings = self.augmentation
            if medium.reference.endswith("#sound"):  # it stays with the pictures of its film
                settings = replace(settings, speed=0.0)
            room = self._room(medium, len(found)) if medium.kind == "audio" and settings.speed else 0
            found = augment(medium.kind, found, settings, draw, room)
        return replace(self.senses.prepare(medium.kind, found), mode=medium.mode)

    def _room(self, medium: Medium, samples: int) -> int:
        """The most samples that take as many slots as these do, as far as slower playing may need them."""
        least, most = samples, math.ceil(samples / (1.0 - min(self.augmentation.speed, 0.9))) + 1
        while least < most:
            middle = (least + most + 1) // 2
            if self.senses.slots(Facts("audio", samples=middle)) == medium.slots:
                least = middle
            else:
                most = middle - 1
        return least


def _check(of: str, medium: Medium, vectors: int) -> None:
    if vectors != medium.slots:
        raise DataError(
            f"{of}{medium.kind} {medium.reference} has {vectors} vectors, and the row {medium.slots} slots for them",
            "the base's processor settings changed since the rows were encoded: remove tokens/ and run again",
        )
