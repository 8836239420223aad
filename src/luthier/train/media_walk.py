"""What it takes to encode the media of a pass, before a weight is loaded: walked on torch's meta device.

Encoders read sizes and masks of media on the host, and so these keep their values while pixels have none. A frozen
encoder gives its memory back before the decoder begins; of a tuned one what backward needs stays. What its backward
takes beyond that is not seen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from luthier.models.senses.base import Prepared, Senses
from luthier.models.senses.store import tuned
from luthier.models.senses.supply import MediaBatch
from luthier.runtime.live_bytes import LiveBytes


@dataclass(frozen=True)
class MediaWalk:
    """Bytes of one pass's encoding. `vectors` stand in for what it makes, as vectors that were stored would: those of
    one layer, for deeper ones are put in at places that only values tell."""

    held: int
    peak: int
    vectors: MediaBatch


def walk_media(senses: Senses, model: Any, media: MediaBatch) -> MediaWalk:
    """Walk through the encoding of a pass's media. `model` is the bare base on the meta device.

    Raises RuntimeError for an encoder that reads values of pixels on its way.
    """
    held = peak = 0
    made: list[torch.Tensor] = []
    for kind in dict.fromkeys(one.kind for one in media.prepared):
        prepared = [_without_pixels(one) for one in media.prepared if one.kind == kind]
        moves = tuned(senses, model, kind)
        with LiveBytes() as live, torch.set_grad_enabled(moves):
            vectors = senses.encode(model, prepared)
            peak = max(peak, held + live.peak)
            held += live.now if moves else sum(one.nbytes for one in vectors)
        made += [one.detach() for one in vectors]
    stored_KMD = torch.empty(1, sum(media.slots), made[0].shape[-1], dtype=made[0].dtype)
    return MediaWalk(held, peak, MediaBatch(media.slots, (-1,) * len(media.slots), stored_KMD))


def _without_pixels(one: Prepared) -> Prepared:
    inputs = {name: value.to("meta") if value.is_floating_point() else value for name, value in one.inputs.items()}
    return replace(one, inputs=inputs)
