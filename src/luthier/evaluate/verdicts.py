"""Held-out answers judged: one forward pass each, and the test whether the model listens or looks at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from luthier.console import progress
from luthier.models.batches import collate
from luthier.models.encode import Example
from luthier.models.features import Features
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
    store: Features
    devices: Devices
    pad_id: int
    batch_size: int = 32

    def __call__(self, examples: Sequence[Example], label: str = "judging") -> Judged:
        """Judge all examples, longest last; nothing is generated or parsed."""
        order = sorted(range(len(examples)), key=lambda i: (len(examples[i].ids), i))
        parts = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        columns: dict[str, NDArray[np.float64]] = {}
        training = self.model.training
        if training:  # a walk over all modules, which takes longer than a toy's verdict
            self.model.eval()
        for part in progress(parts, label, len(parts)):
            batch = collate([examples[i] for i in part], self.store, self.pad_id).to(self.devices.device)
            with self.devices.precision.autocast():
                verdicts = self.model.verdicts(batch)
            for name, value in vars(verdicts).items():
                if value is not None:
                    column = columns.setdefault(name.removesuffix("_B"), np.zeros(len(examples)))
                    column[part] = value.cpu().numpy()
        if training:
            self.model.train()
        if not examples:
            columns["p_pass"] = np.zeros(0)
        return Judged(**columns)


def swap_media(examples: Sequence[Example], seed: int, rounds: int = 5) -> list[Example]:
    """Give every example another's recording, picture or video, `rounds` times over; questions and grades stay.

    Each round is a shuffled circle in which everyone takes their neighbour's. Ids get the round's
    number. Several rounds, because one swap among few speakers lands far from chance by luck.
    """
    swapped = []
    for turn in range(rounds):
        order = np.random.default_rng([seed, turn]).permutation(len(examples))
        for place, i in enumerate(order):
            own, other = examples[i], examples[order[(place + 1) % len(order)]]
            ids = (
                *own.ids[: own.media_at],
                *other.ids[other.media_at : other.media_at + other.media_length],
                *own.ids[own.media_at + own.media_length :],
            )
            taken = {"media": other.media, "media_length": other.media_length, "words": other.words}
            swapped.append(replace(own, id=f"{own.id}#{turn}", ids=ids, **taken))
    return swapped
