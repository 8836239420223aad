"""Chats in batches: rows end to end in one line without padding, or padded in groups of like length.

Either way an optimizer step is the same rows: how they lie changes the cost and not the loss. The order is the
table's mixture, a pure function of (seed, epoch). Slots of media are tokens as all others.
Shapes: B lines, L tokens a line, T all tokens, N positions that predict a target, M slots, P axes of a position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from luthier.models.feeds import Feed
from luthier.models.lessons import Lesson, Lessons
from luthier.models.senses.spelling import placed
from luthier.models.senses.supply import Draw, MediaBatch, Supply

_WINDOW = 16
"""Steps' worth of rows that are sorted by length together, where rows are padded."""


@dataclass
class ChatBatch:
    """One forward pass. `place_N` are positions in the flattened (B * L) hidden states, each predicting `target_N`."""

    ids: list[str]
    input_ids_BL: torch.Tensor
    """At slots of media any id that has an embedding: vectors take its place."""
    position_ids_BL: torch.Tensor
    """(P, B, L) where positions have several axes."""
    lengths: tuple[int, ...]
    """Tokens of each row."""
    packed: bool
    place_N: torch.Tensor
    target_N: torch.Tensor
    weight_N: torch.Tensor
    learned: tuple[int, ...]
    """How many of the N positions are each row's."""
    totals: tuple[float, ...]
    """Each row's sum of `weight_N`, taken on the host."""
    media: MediaBatch | None = None
    slot_M: torch.Tensor | None = None
    """Positions in the flattened (B * L) that the media's vectors take, in their order; None where there are none."""
    seen_BL: torch.Tensor | None = None
    """True at slots of pictures and videos; there where `slot_M` is."""

    @property
    def total(self) -> float:
        """The weight of all targets."""
        return sum(self.totals)

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    def to(self, device: Any) -> ChatBatch:
        """The same batch on another device."""
        names = ("input_ids_BL", "position_ids_BL", "place_N", "target_N", "weight_N", "slot_M", "seen_BL")
        moved = {
            name: value.to(device, non_blocking=True) for name in names if (value := getattr(self, name)) is not None
        }
        return replace(self, **moved, media=self.media and self.media.to(device))


def collate(
    lessons: Sequence[Lesson],
    packed: bool,
    pad_id: int,
    supply: Supply | None = None,
    draws: Sequence[Draw] | None = None,
) -> ChatBatch:
    """Rows as one forward pass: one line of all of them, or one line each, padded on the right.

    A base that sees or hears needs its `supply`, for rows of text alone too; one that reads pictures both ways has rows
    with media padded, never packed. With `draws`, one for each medium in order, media are augmented. Raises MediaError
    for a medium that cannot be decoded.
    """
    if supply is not None and not supply.senses.keeps_causal:
        packed = packed and not any(lesson.media for lesson in lessons)
    lengths = tuple(len(lesson.ids_L) for lesson in lessons)
    width = sum(lengths) if packed else max(lengths)
    lines = 1 if packed else len(lengths)
    ids_T = np.full(lines * width, pad_id, dtype=np.int64)
    positions: list[NDArray[np.int64]] = []
    places, weights = [], []
    begin = 0
    for lesson, length in zip(lessons, lengths, strict=True):
        ids_T[begin : begin + length] = lesson.ids_L
        positions.append(_positions(lesson, supply))
        learned = np.flatnonzero(lesson.weight_L)
        places.append(begin + learned)
        weights.append(lesson.weight_L[learned])
        begin += length if packed else width
    place_N, weight_N = np.concatenate(places), np.concatenate(weights)
    batch = ChatBatch(
        ids=[lesson.id for lesson in lessons],
        input_ids_BL=torch.from_numpy(ids_T.reshape(lines, width)),
        position_ids_BL=_laid(positions, lines, width),
        lengths=lengths,
        packed=packed,
        place_N=torch.from_numpy(place_N - 1),  # a token is predicted where the one before it stands
        target_N=torch.from_numpy(ids_T[place_N]),
        weight_N=torch.from_numpy(weight_N),
        learned=tuple(len(place) for place in places),
        totals=tuple(float(weight.sum(dtype=np.float64)) for weight in weights),
    )
    return batch if supply is None else _with_media(batch, lessons, pad_id, supply, draws)


def _positions(lesson: Lesson, supply: Supply | None) -> NDArray[np.int64]:
    """(P, L) of a row by itself."""
    if supply is None:
        return np.arange(len(lesson.ids_L), dtype=np.int64)[None]
    return supply.senses.positions(lesson.ids_L.astype(np.int64), placed(lesson.media))


def _laid(positions: Sequence[NDArray[np.int64]], lines: int, width: int) -> torch.Tensor:
    """Positions of rows as their ids lie: (B, L), or (P, B, L)."""
    axes = len(positions[0])
    if lines == 1:
        position_PT = np.concatenate(positions, axis=1)
    else:
        position_PT = np.zeros((axes, lines * width), dtype=np.int64)
        for line, position_PL in enumerate(positions):
            position_PT[:, line * width : line * width + position_PL.shape[1]] = position_PL
    found = torch.from_numpy(position_PT.reshape(axes, lines, width))
    return found[0] if axes == 1 else found


def _with_media(
    batch: ChatBatch, lessons: Sequence[Lesson], pad_id: int, supply: Supply, draws: Sequence[Draw] | None
) -> ChatBatch:
    """The batch with the media of its rows, and where they stand."""
    media = [medium for lesson in lessons for medium in lesson.media]
    if not media:
        return batch
    rows = [lesson.id for lesson in lessons for _ in lesson.media]
    ids_T = batch.input_ids_BL.flatten().numpy()
    # Rows lie one after the other, so the slots of the flattened lines come in the order of the media.
    slot_M = np.flatnonzero(np.isin(ids_T, list(supply.senses.slot_ids.values())))
    seen_M = np.repeat([medium.kind != "audio" for medium in media], [medium.slots for medium in media])
    seen_T = np.zeros(len(ids_T), dtype=bool)
    seen_T[slot_M] = seen_M
    ids_T[slot_M] = pad_id  # some slot ids lie beyond the embedding
    return replace(
        batch,
        media=supply.batch(media, draws, rows),
        slot_M=torch.from_numpy(slot_M),
        seen_BL=torch.from_numpy(seen_T).view(batch.input_ids_BL.shape),
    )


@dataclass(frozen=True)
class Layout:
    """How the rows of a step lie in forward passes. `micro_tokens` 0: no limit but `micro_rows`."""

    batch_size: int
    micro_rows: int
    micro_tokens: int = 0
    packed: bool = True
    pad_id: int = 0
    alone_beyond: int = 0
    """Rows of more tokens lie alone, for they move the positions of what is read with them: see
    `tree_reading.stretches_beyond`. 0: no row does."""

    def suited(self, lessons: Lessons, supply: Supply | None) -> Layout:
        """Padded where tokens of a picture attend both ways, which attention to packed rows does not know."""
        if supply is None or supply.senses.keeps_causal or not lessons.media_count:
            return self
        return replace(self, packed=False)

    def alone(self, length: int) -> bool:
        """Whether a row of so many tokens shares no pass."""
        return 0 < self.alone_beyond < length


class ChatFeed(Feed):
    """Optimizer steps over lessons. `order(epoch)` gives the lessons of an epoch, each as often as it is shown.

    `rows_per_epoch` is given by a run that ends within its first epoch and has encoded a part of it. `supply` has the
    media, for bases that see or hear; what augmentation draws follows from (seed, epoch, row id).
    """

    def __init__(
        self,
        lessons: Lessons,
        order: Callable[[int], NDArray[np.int64]],
        layout: Layout,
        seed: int,
        rows_per_epoch: int = 0,
        supply: Supply | None = None,
    ) -> None:
        self.lessons, self.layout, self.seed, self.supply = lessons, layout, seed, supply
        self._order = lru_cache(maxsize=2)(order)
        self._first = [0]
        """Steps before each epoch, as far as they have been asked for."""
        self.part = bool(rows_per_epoch)
        """Whether only a part of the first epoch is here, and no other."""
        self.rows_per_epoch = rows_per_epoch or len(self._order(0))
        self.steps_per_epoch = -(-self.rows_per_epoch // layout.batch_size)

    def _steps_of(self, epoch: int) -> int:
        steps = -(-len(self._order(epoch)) // self.layout.batch_size)
        if not steps:
            raise ValueError(f"epoch {epoch} has no rows")
        return steps

    def epoch_of(self, step: int) -> tuple[int, int]:
        """The epoch of a step (from 1), and its place there (from 0)."""
        while self._first[-1] < step:
            self._first.append(self._first[-1] + self._steps_of(len(self._first) - 1))
        epoch = next(e for e in range(len(self._first) - 1) if self._first[e + 1] >= step)
        return epoch, step - 1 - self._first[epoch]

    def ends_epoch(self, step: int) -> bool:
        epoch, place = self.epoch_of(step)
        return not self.part and place + 1 == self._steps_of(epoch)

    def epoch_at(self, step: int) -> float:
        epoch, place = self.epoch_of(step)
        return step / self.steps_per_epoch if self.part else epoch + (place + 1) / self._steps_of(epoch)

    def rows(self, step: int) -> Sequence[int]:
        epoch, place = self.epoch_of(step)
        order, size = self._order(epoch), self.layout.batch_size
        if self.layout.packed:
            return [int(row) for row in order[place * size : (place + 1) * size]]
        # Steps of like length: a window is sorted, cut into steps, and the steps change places.
        window = place // _WINDOW
        rows = order[window * _WINDOW * size : (window + 1) * _WINDOW * size]
        lengths = self.lessons.lengths[rows]
        by_length = rows[np.argsort(lengths, kind="stable")]
        steps = -(-len(rows) // size)
        # The short step of an epoch stays the last one, so that a step's size follows from its number.
        moved = np.random.default_rng([self.seed, epoch, window]).permutation(len(rows) // size)
        chosen = [*moved, *range(len(moved), steps)][place % _WINDOW]
        return [int(row) for row in by_length[chosen * size : (chosen + 1) * size]]

    def batches(self, step: int, halvings: int = 0) -> list[ChatBatch]:
        rows = list(self.rows(step))
        groups = self.layout_of(rows, halvings)
        if halvings and len(self.layout_of(rows, halvings - 1)) == len(rows):
            return []
        epoch = self.epoch_of(step)[0]
        return [self._pass([self.lessons[row] for row in group], epoch) for group in groups]

    def _pass(self, lessons: Sequence[Lesson], epoch: int) -> ChatBatch:
        draws = [Draw(self.seed, epoch, one.id, place) for one in lessons for place in range(len(one.media))]
        return collate(lessons, self.layout.packed, self.layout.pad_id, self.supply, draws)

    def layout_of(self, rows: Sequence[int], halvings: int = 0) -> list[list[int]]:
        """Rows in forward passes: at most so many rows, and tokens where they are limited; longest rows first then."""
        most_rows = max(1, self.layout.micro_rows >> halvings)
        most_tokens = self.layout.micro_tokens >> halvings
        lengths = {row: int(self.lessons.starts[row + 1] - self.lessons.starts[row]) for row in rows}
        alone = [[row] for row in rows if self.layout.alone(lengths[row])]
        rest = [row for row in rows if not self.layout.alone(lengths[row])]
        if not self.layout.micro_tokens:
            return [*alone, *(rest[at : at + most_rows] for at in range(0, len(rest), most_rows))]
        groups: list[list[int]] = []
        for row in sorted(rest, key=lambda row: -lengths[row]):  # first fit decreasing: few passes, none too large
            fitting = (g for g in groups if len(g) < most_rows and self._room(g, row, lengths) <= most_tokens)
            group = next(fitting, None)
            if group is None:
                groups.append([row])
            else:
                group.append(row)
        return [*alone, *groups]

    def _room(self, group: Sequence[int], row: int, lengths: dict[int, int]) -> int:
        """Tokens that a pass takes with one more row, padding included."""
        if self.layout.packed:
            return sum(lengths[other] for other in group) + lengths[row]
        return max(lengths[group[0]], lengths[row]) * (len(group) + 1)


def in_order(lessons: Lessons, layout: Layout) -> list[list[int]]:
    """All lessons once, in forward passes of rows of like length, for looking at them without training.

    The shortest first, as many in each pass as its limits allow: one look at each row, of which there are many here.
    """
    lengths_R = lessons.lengths
    passes: list[list[int]] = []
    taken = 0
    for row in np.argsort(lengths_R, kind="stable").tolist():
        length = int(lengths_R[row])
        last = passes[-1] if passes else []
        wanted = taken + length if layout.packed else length * (len(last) + 1)
        fits = len(last) < layout.micro_rows and (not layout.micro_tokens or wanted <= layout.micro_tokens)
        if last and fits and not layout.alone(length):
            last.append(row)
            taken = wanted
        else:
            passes.append([row])
            taken = length
    return passes
