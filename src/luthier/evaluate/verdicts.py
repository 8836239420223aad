"""Held-out answers judged: one forward pass each, and the test whether the model listens at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from luthier.console import progress
from luthier.models.batches import collate
from luthier.models.encode import Example
from luthier.models.features import FeatureStore
from luthier.models.verdict import VerdictModel
from luthier.runtime.devices import Devices


@dataclass
class Judged:
    """Probabilities of N answers, in the order of the examples."""

    p_pass: NDArray[np.float64]
    p_panel: NDArray[np.float64] | None = None
    p_rater: NDArray[np.float64] | None = None
    grade_mean: NDArray[np.float64] | None = None


@dataclass
class Judge:
    """A model with what it needs to judge examples. Their order and company do not change a probability."""

    model: VerdictModel
    store: FeatureStore
    devices: Devices
    pad_id: int
    batch_size: int = 32

    def __call__(self, examples: Sequence[Example], label: str = "judging") -> Judged:
        """Judge all examples, longest last; nothing is generated or parsed."""
        order = sorted(range(len(examples)), key=lambda i: (len(examples[i].ids), i))
        parts = [order[i:i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        columns: dict[str, NDArray[np.float64]] = {}
        training = self.model.training
        self.model.eval()
        for part in progress(parts, label, len(parts)):
            batch = collate([examples[i] for i in part], self.store, self.pad_id).to(self.devices.device)
            with self.devices.precision():
                verdicts = self.model.verdicts(batch)
            for name, value in vars(verdicts).items():
                if value is not None:
                    column = columns.setdefault(name.removesuffix("_B"), np.zeros(len(examples)))
                    column[part] = value.cpu().numpy()
        self.model.train(training)
        if not examples:
            columns["p_pass"] = np.zeros(0)
        return Judged(**columns)


def soft_log_loss(p: NDArray[np.float64], target: NDArray[np.float64]) -> float:
    """Mean of -t log p - (1 - t) log(1 - p)."""
    p = np.clip(p, 1e-7, 1 - 1e-7)
    return float(np.mean(-target * np.log(p) - (1 - target) * np.log1p(-p)))


def swap_recordings(examples: Sequence[Example], audio_token_id: int, seed: int) -> list[Example]:
    """Give every example the recording of another speaker; questions and grades stay.

    The swap is a cyclic shift of a seeded shuffle sorted by speaker, by as many places as the largest
    speaker has, so that nobody keeps their own voice unless one speaker has more than half of the rows.
    """
    rng = np.random.default_rng(seed)
    rank = {group: i for i, group in enumerate(rng.permutation(sorted({e.group for e in examples})))}
    order = sorted(rng.permutation(len(examples)).tolist(), key=lambda i: rank[examples[i].group])
    groups = [e.group for e in examples]
    shift = max(1, max(groups.count(group) for group in rank))
    swapped = list(examples)
    for place, i in enumerate(order):
        other = examples[order[(place + shift) % len(order)]]
        own = examples[i]
        ids = (*own.ids[:own.sound_at], *[audio_token_id] * other.sound_length,
               *own.ids[own.sound_at + own.sound_length:])
        swapped[i] = replace(own, ids=ids, media=other.media, sound_length=other.sound_length)
    return swapped


