"""Rows with media as the text decoder is given them: embeddings, positions, and what its family asks for besides.

One way for all who call the decoder of a base that sees or hears by themselves, with rows padded on either side.

Shapes: B rows, L tokens of the longest, P axes of a position, D model width, K layers that take vectors, M slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from luthier.models.senses.base import Medium, Senses
from luthier.models.senses.spelling import placed

Row = tuple[Sequence[int] | NDArray[np.int64], Sequence[Medium]]
"""Ids with the spellings of media in them, and the media in order."""


@dataclass(frozen=True)
class Laid:
    """Rows side by side, on the host."""

    ids_BL: NDArray[np.int64]
    """The padding's id at slots too: some slot ids lie beyond the embedding."""
    position_PBL: NDArray[np.int64]
    slot_BL: NDArray[np.bool_]
    seen_BL: NDArray[np.bool_]
    """Slots of pictures and videos."""
    media: tuple[Medium, ...]
    """Of all rows, in the order of their slots."""


def lay(senses: Senses, rows: Sequence[Row], pad: int, left: bool = False) -> Laid:
    """Pad rows on the right, where no token of a causal decoder sees it, or on the left; positions are each row's."""
    width = max(len(ids) for ids, _ in rows)
    ids_BL = np.full((len(rows), width), pad, dtype=np.int64)
    positions = [senses.positions(np.asarray(ids, dtype=np.int64), placed(media)) for ids, media in rows]
    position_PBL = np.zeros((len(positions[0]), *ids_BL.shape), dtype=np.int64)
    for row, (ids, _) in enumerate(rows):
        part = slice(width - len(ids), width) if left else slice(0, len(ids))
        ids_BL[row, part], position_PBL[:, row, part] = ids, positions[row]
    slot_BL = np.isin(ids_BL, np.unique(list(senses.slot_ids.values())))
    media = tuple(medium for _, its in rows for medium in its)
    seen_BL = slot_BL.copy()
    seen_BL[slot_BL] = np.repeat([medium.kind != "audio" for medium in media], [medium.slots for medium in media])
    ids_BL[slot_BL] = pad
    return Laid(ids_BL, position_PBL, slot_BL, seen_BL, media)


def decoder_given(
    senses: Senses,
    model: Any,
    laid: Laid,
    vectors_KMD: torch.Tensor | None,
    mask_BL: torch.Tensor | None = None,
) -> dict[str, Any]:
    """What `senses.decoder(model)` is called with: `vectors_KMD` are of all media, on the model's device.

    `mask_BL` is 1 at tokens, for rows that are padded on the left.
    """
    embedding = model.get_input_embeddings()
    device = next(embedding.parameters()).device
    embeds_BLD = embedding(torch.from_numpy(laid.ids_BL).to(device))
    if vectors_KMD is not None:
        place_M = torch.from_numpy(np.flatnonzero(laid.slot_BL)).to(device)
        rows_MD = vectors_KMD[0].to(embeds_BLD.dtype)
        embeds_BLD = embeds_BLD.flatten(0, 1).index_copy(0, place_M, rows_MD).view_as(embeds_BLD)
    seen_BL = torch.from_numpy(laid.seen_BL).to(device)
    positions = torch.from_numpy(laid.position_PBL).to(device)
    return {
        "inputs_embeds": embeds_BLD,
        "position_ids": positions[0] if len(positions) == 1 else positions,
        **senses.decoder_inputs(model, embeds_BLD, seen_BL, vectors_KMD, mask_BL),
    }
