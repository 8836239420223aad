"""What an optimizer step is made of: its rows are a function of the step, and any step can be asked for at once.

A feed maps a step to rows and rows to batches; this module turns that into a stream that worker processes may
prepare ahead. It knows nothing of tasks, and reads no random state. Slurm, systemd and ctrl-C signal the whole group
that a training is in: that is for the parent to hear, and its workers end when it says so.
"""

from __future__ import annotations

import os
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from luthier.models.learner import AnyBatch

_FOR_THE_PARENT = (signal.SIGTERM, signal.SIGINT) if hasattr(signal, "sigtimedwait") else ()
"""Signals that workers do not hear of; macOS cannot say who sent one, so there they do."""


class Feed(ABC):
    """The batches of a training, step after step. `steps_per_epoch` counts the optimizer steps of the first epoch."""

    steps_per_epoch: int

    @abstractmethod
    def rows(self, step: int) -> Sequence[int]:
        """The rows of optimizer step `step` (from 1), in order."""

    def ends_epoch(self, step: int) -> bool:
        """Whether the rows of an epoch have all been shown with this step."""
        return step % self.steps_per_epoch == 0

    def epoch_at(self, step: int) -> float:
        """How many epochs have been shown with this step."""
        return step / self.steps_per_epoch

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
    begin = _begin_worker if _FOR_THE_PARENT else None
    loader: Any = torch.utils.data.DataLoader(
        steps, batch_size=None, shuffle=False, num_workers=workers, worker_init_fn=begin
    )
    # Held back while the workers are made: one that died of a signal before its first line would end the training.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_PARENT)
    try:
        batches = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    yield from batches


def _begin_worker(_number: int) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_PARENT)
    threading.Thread(target=_heed_parent, args=(os.getppid(),), daemon=True).start()


def _heed_parent(parent: int) -> None:
    """End this worker when the parent says so, or has ended: within a second.

    torch looks for a lost parent only between batches, and a worker that waits for room in its pipe comes to no other.
    """
    while os.getppid() == parent:
        heard = signal.sigtimedwait([signal.SIGTERM], 1.0)
        if heard is not None and heard.si_pid == parent:
            break
    os._exit(0)
