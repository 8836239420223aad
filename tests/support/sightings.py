"""Pictures and rows for the tests of what bases see: our way through a model, to lay beside the library's own."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from luthier.data.mediasource import Facts, Film
from luthier.models.senses.base import Placed, Prepared, Senses, senses_of
from luthier.models.toys import build_toy

ODD_SIZES = ((61, 47), (190, 33), (29, 240), (7, 7), (112, 112), (301, 299))
"""Widths and heights that no tile fits."""


@dataclass(frozen=True)
class Sight:
    """A toy twin that sees."""

    model: Any
    tokenizer: Any
    senses: Senses

    @classmethod
    def of(cls, name: str) -> Sight:
        model, tokenizer, _ = build_toy(name)
        senses = senses_of(model, tokenizer, name)
        assert senses is not None
        return cls(model, tokenizer, senses)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise over a slope, so that a turned or shifted picture is another one."""
    noise = np.random.default_rng([seed, width, height]).integers(0, 64, (height, width, 3))
    slope = np.linspace(0, 190, width)[None, :, None]
    return Image.fromarray((noise + slope).astype(np.uint8))


def film(frames: int, width: int = 90, height: int = 50) -> Film:
    """A film of one frame a second."""
    shown = tuple(picture(width, height, seed) for seed in range(frames))
    return Film(shown, tuple(float(second) for second in range(frames)), float(frames))


def facts_of(medium: Any) -> Facts:
    """What is known of a picture, film or recording before its content."""
    if isinstance(medium, np.ndarray):
        return Facts("audio", samples=len(medium))
    if isinstance(medium, Film):
        return Facts("video", *medium.frames[0].size, seconds=medium.seconds)
    return Facts("image", *medium.size)


def expanded(senses: Senses, text: str, media: list[Any]) -> str:
    """A text whose marks are spelled, in order."""
    done, counts = "", Counter[str]()
    for medium in media:
        facts = facts_of(medium)
        counts[facts.kind] += 1
        before, mark, text = text.partition(senses.mark(facts.kind, counts[facts.kind]))
        assert mark
        done += before + senses.spell(facts)
    return done + text


def our_ids(sight: Sight, text: str, media: list[Any]) -> list[int]:
    ids: list[int] = sight.tokenizer(expanded(sight.senses, text, media), add_special_tokens=False)["input_ids"]
    return ids


def our_positions(sight: Sight, ids: list[int], media: list[Any]) -> torch.Tensor:
    """(P, L) of a row by itself."""
    facts = [facts_of(one) for one in media]
    placed = Placed(
        tuple(one.kind for one in facts),
        tuple(sight.senses.grid(one) for one in facts),
        tuple(sight.senses.pace(one) for one in facts),
    )
    return torch.from_numpy(np.array(sight.senses.positions(np.array(ids), placed)))


def our_logits(sight: Sight, rows: list[tuple[str, list[Any]]]) -> torch.Tensor:
    """(B, L, V) by embeddings, vectors at the slots and the text decoder; rows are padded on the right.

    Slots are embedded as token 0 first, for the id of a slot may have no row in the embedding.
    """
    senses, model = sight.senses, sight.model
    ids = [our_ids(sight, text, media) for text, media in rows]
    ids_BL = torch.nn.utils.rnn.pad_sequence([torch.tensor(one) for one in ids], batch_first=True)
    places = [our_positions(sight, one, media) for one, (_, media) in zip(ids, rows, strict=True)]
    position_PBL = torch.stack(
        [torch.nn.functional.pad(one, (0, ids_BL.shape[1] - one.shape[1])) for one in places], dim=1
    )
    slot_BL = torch.isin(ids_BL, torch.tensor(sorted(set(senses.slot_ids.values()))))
    embeds_BLD = model.get_input_embeddings()(ids_BL.masked_fill(slot_BL, 0))
    prepared = [one for _, media in rows for one in prepared_row(sight, media)]
    vectors_KMD = torch.cat(senses.encode(model, prepared), dim=1) if prepared else None
    if vectors_KMD is not None:
        embeds_BLD = embeds_BLD.masked_scatter(slot_BL[..., None], vectors_KMD[0])
    found = senses.decoder(model)(
        inputs_embeds=embeds_BLD,
        position_ids=position_PBL if len(position_PBL) > 1 else position_PBL[0],
        use_cache=False,
        **senses.decoder_inputs(model, embeds_BLD, slot_BL, vectors_KMD),
    )
    logits_BLV: torch.Tensor = model.get_output_embeddings()(found.last_hidden_state)
    return logits_BLV


def prepared_row(sight: Sight, media: list[Any]) -> list[Prepared]:
    """The media of one row, each as its company has it read."""
    kinds = [facts_of(one).kind for one in media]
    return [
        replace(sight.senses.prepare(kind, one), mode=mode)
        for kind, one, mode in zip(kinds, media, sight.senses.modes(kinds), strict=True)
    ]


def vectors_of(sight: Sight, media: list[Any]) -> list[torch.Tensor]:
    """(K, S, D) of each, encoded in one call."""
    prepared = [sight.senses.prepare(facts_of(one).kind, one) for one in media]
    return sight.senses.encode(sight.model, prepared)


def reached(sight: Sight, media: list[Any], spared: tuple[str, ...] = ()) -> set[str]:
    """The parts of encoder and projector whose parameters all get a gradient that is not zero from these media.

    Parameters with a word of `spared` in their names are left out.
    """
    kind = facts_of(media[0]).kind
    prefixes = (*sight.senses.encoders[kind], *sight.senses.projectors[kind])
    parameters = {name: one.requires_grad_() for name, one in sight.model.named_parameters()}
    sight.model.zero_grad()
    sum(one.square().sum() for one in vectors_of(sight, media)).backward()
    found = set()
    for prefix in prefixes:
        names = [name for name in parameters if name.startswith(prefix) and not any(word in name for word in spared)]
        below = [parameters[name] for name in names]
        if below and all(one.grad is not None and bool(one.grad.any()) for one in below):
            found.add(prefix)
    return found
