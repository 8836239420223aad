"""Where batches take their media from: prepared anew for the encoder, or as vectors that were made before.

Knows references and draws of augmentation; refuses to know rows' texts, ids and losses.

Shapes: M slots of a batch, D model width, K layers that take vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from luthier.data.mediasource import MediaSource
from luthier.models.senses.base import Prepared, Senses
from luthier.schema import PartType


@dataclass(frozen=True, slots=True)
class Medium:
    """A medium of an encoded row."""

    kind: PartType
    reference: str
    slots: int


@dataclass(frozen=True, slots=True)
class Draw:
    """What the augmentation of a medium follows from; two media of a row differ in `place`."""

    seed: int
    epoch: int
    row: str
    place: int


@dataclass
class MediaBatch:
    """The media of one forward pass in the order of their slots: stored vectors, or what the encoder is given."""

    vectors_KMD: torch.Tensor | None = None
    prepared: tuple[Prepared, ...] = ()

    def to(self, device: Any) -> MediaBatch:
        """The same on another device."""
        if self.vectors_KMD is not None:
            return MediaBatch(self.vectors_KMD.to(device, non_blocking=True))
        moved = (
            replace(one, inputs={name: value.to(device, non_blocking=True) for name, value in one.inputs.items()})
            for one in self.prepared
        )
        return MediaBatch(None, tuple(moved))


@dataclass
class Supply:
    """The media of a table for one base."""

    senses: Senses
    source: MediaSource

    def batch(self, media: Sequence[Medium], draws: Sequence[Draw] | None = None) -> MediaBatch:
        """The media of a pass. With `draws` (training rows) they are augmented as the recipe says.

        Raises MediaError for a medium that cannot be decoded, DataError for one whose vectors are not as many as its
        row has slots.
        """
        prepared = tuple(self._prepare(medium) for medium in media)
        return MediaBatch(None, prepared)

    def _prepare(self, medium: Medium) -> Prepared:
        return self.senses.prepare(medium.kind, self.source.load(medium.kind, medium.reference))
