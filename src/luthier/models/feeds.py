"""What an optimizer step is made of: its rows are a function of the step, and any step can be asked for at once.

A feed maps a step to rows and rows to batches; this module turns that into a stream that worker processes may
prepare ahead. It knows nothing of tasks, and reads no random state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from luthier.models.learner import AnyBatch


class Feed(ABC):
    """The batches of a training, step after step. `steps_per_epoch` counts whole optimizer steps."""

    steps_per_epoch: int

    @abstractmethod
    def rows(self, step: int) -> Sequence[int]:
        """The rows of optimizer step `step` (from 1), in order."""

    @abstractmethod
    def batches(self, step: int, halvings: int = 0) -> Sequence[AnyBatch]:
        """The forward passes of a step. Each halving makes them half as large; their rows stay the same.

        An empty list says that they cannot be made smaller: one row of one pass is all there is.
        """


class _Steps(torch.utils.data.Dataset[Sequence[AnyBatch]]):
    def __init__(self, feed: Feed, first: int, last: int, halvings: int) -> None:
        self.feed, self.first, self.last, self.halvings = feed, first, last, halvings

    def __len__(self) -> int:
        return max(0, self.last - self.first + 1)

    def __getitem__(self, index: int) -> Sequence[AnyBatch]:
        return self.feed.batches(self.first + index, self.halvings)


def stream(feed: Feed, first: int, last: int, halvings: int = 0, workers: int = 0) -> Iterator[Sequence[AnyBatch]]:
    """The batches of steps `first` to `last`; the same with any number of worker processes."""
    steps = _Steps(feed, first, last, halvings)
    if not workers:
        yield from (steps[index] for index in range(len(steps)))
        return
    # Each worker keeps memory maps and lists by fork; nothing of a batch is decided there.
    loader: Any = torch.utils.data.DataLoader(steps, batch_size=None, shuffle=False, num_workers=workers)
    yield from loader
