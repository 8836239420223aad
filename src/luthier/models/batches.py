"""The order of rows and the batches made of them: pure functions of (seed, epoch), so any step can be jumped to.

Shapes: B rows of a micro-batch, L tokens, G rows whose media have as many vectors, T x F mel frames or S x D encoder
outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from luthier.models.encode import Example
from luthier.models.features import Features
from luthier.models.feeds import Feed
from luthier.models.losses import total_weight
from luthier.recipe_train import TrainConfig

_WINDOW = 16
"""Batches' worth of shuffled rows that are sorted by length together."""


@dataclass(frozen=True)
class Micro:
    """One forward pass: which examples, and the pairs to rank among them."""

    rows: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...] = ()


@dataclass
class MediaGroup:
    """The media of rows that have as many vectors: log-mel (G, T, F), or (G, S, D) when `encoded`."""

    rows_G: torch.Tensor
    place_GS: torch.Tensor
    """Where the vectors stand in their rows."""
    values: torch.Tensor
    encoded: bool


@dataclass
class Batch:
    """A padded micro-batch."""

    ids: list[str]
    input_ids_BL: torch.Tensor
    readout_B: torch.Tensor
    media: list[MediaGroup]
    target_B: torch.Tensor
    level_B: torch.Tensor
    pairs: list[tuple[int, int]] = field(default_factory=list)
    weight_B: torch.Tensor | None = None
    """Weights of the rows; None where each counts as one."""

    @property
    def weight(self) -> float:
        """What this batch adds to the weight of its step; on the host, as collate made it there."""
        return total_weight(len(self.ids), self.weight_B)

    @property
    def tokens(self) -> int:
        return int(self.readout_B.sum()) + len(self.readout_B)

    def to(self, device: Any) -> Batch:
        """The same batch on another device."""
        groups = [
            MediaGroup(g.rows_G.to(device), g.place_GS.to(device), g.values.to(device), g.encoded) for g in self.media
        ]
        return Batch(
            self.ids,
            self.input_ids_BL.to(device),
            self.readout_B.to(device),
            groups,
            self.target_B.to(device),
            self.level_B.to(device),
            self.pairs,
            None if self.weight_B is None else self.weight_B.to(device),
        )


def epoch_order(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Every row once, in batches of similar length: shuffled, sorted inside windows, batches shuffled."""
    rng = np.random.default_rng([seed, epoch])
    shuffled = rng.permutation(len(lengths))
    batches = []
    for start in range(0, len(shuffled), batch_size * _WINDOW):
        window = sorted(shuffled[start : start + batch_size * _WINDOW].tolist(), key=lambda row: (lengths[row], row))
        batches += [window[i : i + batch_size] for i in range(0, len(window), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def ranking_pairs(rows: Sequence[int], examples: Sequence[Example], pass_mark: float) -> list[tuple[int, int]]:
    """Disjoint (better, worse) pairs across the pass mark within one optimizer step, nearest grades first."""
    passing = sorted((r for r in rows if examples[r].grade >= pass_mark), key=lambda r: (examples[r].grade, r))
    failing = sorted((r for r in rows if examples[r].grade < pass_mark), key=lambda r: (-examples[r].grade, r))
    return list(zip(passing, failing, strict=False))


def plan_micros(
    rows: Sequence[int], examples: Sequence[Example], micro_batch_size: int, pass_mark: float | None = None
) -> list[Micro]:
    """The forward passes of one optimizer step. With `pass_mark`, pairs are planned and never split.

    Pairs belong to the optimizer step, not to the micro-batch: the loss is the same however rows are accumulated.
    """
    pairs = ranking_pairs(rows, examples, pass_mark) if pass_mark is not None else []
    paired = {row for pair in pairs for row in pair}
    units = [list(pair) for pair in pairs] + [[row] for row in rows if row not in paired]
    found = []
    for unit_rows in _pack(units, micro_batch_size):
        own = tuple((unit_rows.index(a), unit_rows.index(b)) for a, b in pairs if a in unit_rows)
        found.append(Micro(tuple(unit_rows), own))
    return found


def _pack(units: list[list[int]], size: int) -> Iterator[list[int]]:
    rows: list[int] = []
    for unit in units:
        if rows and len(rows) + len(unit) > size:
            yield rows
            rows = []
        rows = rows + unit
    if rows:
        yield rows


def collate(
    examples: Sequence[Example],
    store: Features,
    pad_id: int,
    pairs: Sequence[tuple[int, int]] = (),
) -> Batch:
    """Pad on the right, and group media by how many vectors they have."""
    longest = max(len(example.ids) for example in examples)
    input_ids = torch.full((len(examples), longest), pad_id, dtype=torch.long)
    groups: dict[int, list[int]] = {}
    places: list[list[int]] = []
    for i, example in enumerate(examples):
        input_ids[i, : len(example.ids)] = torch.tensor(example.ids)
        words = set(example.words)
        places.append([example.media_at + at for at in range(example.media_length) if at not in words])
        groups.setdefault(len(places[-1]), []).append(i)
    media = [
        MediaGroup(
            torch.tensor(rows),
            torch.tensor([places[i] for i in rows]),
            torch.stack([store.load(examples[i].media) for i in rows]),
            store.encoded,
        )
        for _, rows in sorted(groups.items())
    ]
    return Batch(
        [e.id for e in examples],
        input_ids,
        torch.tensor([len(e.ids) - 1 for e in examples]),
        media,
        torch.tensor([e.target for e in examples]),
        torch.tensor([e.level for e in examples]),
        list(pairs),
        torch.tensor([e.weight for e in examples]) if any(e.weight != 1.0 for e in examples) else None,
    )


class VerdictFeed(Feed):
    """The optimizer steps of a verdict training: graded rows with their media."""

    def __init__(
        self,
        examples: Sequence[Example],
        store: Features,
        pad_id: int,
        train: TrainConfig,
        seed: int,
        pass_mark: float | None = None,
    ) -> None:
        self.examples, self.store, self.pad_id, self.train, self.seed = examples, store, pad_id, train, seed
        self.pass_mark = pass_mark
        self.steps_per_epoch = -(-len(examples) // train.batch_size)
        self._epochs: dict[int, list[list[int]]] = {}

    def rows(self, step: int) -> list[int]:
        epoch, place = divmod(step - 1, self.steps_per_epoch)
        if epoch not in self._epochs:
            lengths = [len(example.ids) for example in self.examples]
            self._epochs = {epoch: epoch_order(lengths, self.train.batch_size, self.seed, epoch)}
        return self._epochs[epoch][place]

    def batches(self, step: int, halvings: int = 0) -> list[Batch]:
        smallest = 1 if self.pass_mark is None else 2  # a pair is never split
        size = max(smallest, self.train.micro_batch_size >> halvings)
        if halvings and self.train.micro_batch_size >> (halvings - 1) <= smallest:
            return []
        micros = plan_micros(self.rows(step), self.examples, size, self.pass_mark)
        return [
            collate([self.examples[row] for row in micro.rows], self.store, self.pad_id, micro.pairs)
            for micro in micros
        ]
