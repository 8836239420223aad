"""What the loop trains: a module that knows its loss, and how its tuned part is saved and loaded.

The loop, the checkpoints and the memory estimate know tasks only by this class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from luthier.models.losses import Loss


class AnyBatch(Protocol):
    """One forward pass's rows."""

    ids: list[str]
    """Ids of its rows, for messages."""

    @property
    def tokens(self) -> int:
        """Tokens that the model reads, padding not counted."""

    def to(self, device: Any) -> AnyBatch:
        """The same batch on another device."""


@dataclass(frozen=True)
class StepWeights:
    """What the sums of one optimizer step are divided by, over all of its batches. Known on the host."""

    main: float
    """For the main term: rows, or target tokens, each as it weighs."""
    pairs: float = 0.0
    """For a term over pairs of rows."""


class Learner(nn.Module, ABC):
    """A model with a loss."""

    @abstractmethod
    def step_weights(self, group: Sequence[Any]) -> StepWeights:
        """What the sums of the step with these batches are divided by. Reads no device."""

    @abstractmethod
    def loss(self, batch: Any, weights: StepWeights) -> tuple[torch.Tensor, Loss]:
        """(this batch's share of the step's loss, (sum, weight) of the main term)."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what is tuned into a folder that is being filled, as a PEFT adapter and what belongs to it."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Put back what `save` wrote. Raises CheckpointError naming what does not fit."""

    def tuned(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The trainable parameters by name."""
        return ((name, p) for name, p in self.named_parameters() if p.requires_grad)
