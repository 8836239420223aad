"""The arithmetic of a run, known before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from luthier.recipe_train import TrainConfig


@dataclass(frozen=True)
class Plan:
    """How many optimizer steps there are, in how many passes over the rows."""

    rows: int
    steps_per_epoch: int
    steps: int
    epochs: int
    warmup_steps: int


def make_plan(rows: int, train: TrainConfig) -> Plan:
    """`max_steps` wins over `epochs`; a part of an epoch is rounded up to whole steps."""
    per_epoch = math.ceil(rows / train.batch_size)
    steps = train.max_steps or math.ceil(
        Fraction(repr(float(train.epochs))) * per_epoch
    )  # 0.07 of 100 steps is 7, and not 8
    warmup = train.warmup_steps or round(train.warmup_ratio * steps)
    return Plan(rows, per_epoch, steps, math.ceil(steps / per_epoch), min(warmup, steps))


@dataclass(frozen=True)
class Load:
    """What steps hold, once the lengths of rows are known. Tokens are those of the rows, without padding."""

    steps: int
    rows: int
    tokens: int
    target_tokens: int
    passes: tuple[tuple[int, ...], ...]
    """The rows of every forward pass, from the one with the fewest places for tokens (padding too) to the largest."""
    largest_tokens: int
    """Tokens of the largest of them."""
    most_passes: int
    """The most forward passes that one step has."""

    @property
    def largest(self) -> tuple[int, ...]:
        """The rows of the largest forward pass: the memory of a run is decided by it."""
        return self.passes[-1]

    def tokens_in(self, rows: int) -> int:
        """Tokens in so many rows like these."""
        return round(self.tokens / self.rows * rows)


def load_of(
    steps: Sequence[Sequence[Sequence[int]]], lengths: Sequence[int], targets: Sequence[int], packed: bool
) -> Load:
    """Add up steps, each given as its forward passes, each of these as row numbers; there is one step at least.

    `lengths` and `targets` are the tokens of each row, and those of them that are learned; `packed` says whether rows
    lie end to end, or padded to the longest of their pass.
    """

    def places(rows: Sequence[int]) -> int:
        return sum(lengths[row] for row in rows) if packed else len(rows) * max(lengths[row] for row in rows)

    passes = sorted((tuple(rows) for step in steps for rows in step), key=places)
    shown = [row for rows in passes for row in rows]
    return Load(
        steps=len(steps),
        rows=len(shown),
        tokens=sum(lengths[row] for row in shown),
        target_tokens=sum(targets[row] for row in shown),
        passes=tuple(passes),
        largest_tokens=sum(lengths[row] for row in passes[-1]),
        most_passes=max(len(step) for step in steps),
    )
