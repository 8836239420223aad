"""How well a chat model knows held-out answers: the log-likelihood of every row's targets, one sum and weight each.

Rows are packed or padded as it suits; neither their company nor the number of processes changes a row's loss.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from luthier.console import progress
from luthier.errors import LuthierError
from luthier.models.chat_batches import Layout, collate, in_order
from luthier.models.chat_model import ChatModel
from luthier.models.lessons import Lessons
from luthier.models.losses import Loss
from luthier.models.senses.supply import Supply
from luthier.runtime.devices import Devices


@dataclass(frozen=True)
class AnswerLosses:
    """Of R rows: the summed negative log-likelihood (nats) of their targets, and the weight that it is a sum over."""

    sum_R: NDArray[np.float64]
    weight_R: NDArray[np.float64]

    @property
    def mean(self) -> float:
        """Nats a target token, over all rows."""
        return float(self.sum_R.sum() / self.weight_R.sum())


def answer_losses(
    model: ChatModel,
    lessons: Lessons,
    layout: Layout,
    devices: Devices,
    label: str = "scoring answers",
    supply: Supply | None = None,
) -> AnswerLosses:
    """Score every lesson once; label smoothing plays no part. A base that sees or hears needs its `supply`."""
    sum_R = torch.zeros(len(lessons), dtype=torch.float64, device=devices.device)
    weight_R = np.zeros(len(lessons))
    training = model.training
    model.eval()
    passes = devices.share(in_order(lessons, replace(layout, alone_beyond=model.alone_beyond)))
    losses = partial(_losses, model, lessons, layout, devices, supply)
    for rows in progress(passes, label, len(passes)):
        for row, loss in zip(rows, losses(rows), strict=True):
            sum_R[row] = loss.sum
            weight_R[row] = loss.weight
    model.train(training)
    weights = torch.from_numpy(weight_R).to(devices.device)
    devices.add_up([sum_R, weights])
    return AnswerLosses(sum_R.cpu().numpy(), weights.cpu().numpy())


def _losses(
    model: ChatModel, lessons: Lessons, layout: Layout, devices: Devices, supply: Supply | None, rows: list[int]
) -> list[Loss]:
    """The loss of each row; where memory runs out, of one half after the other."""
    batch = collate([lessons[row] for row in rows], layout.packed, layout.pad_id, supply)
    with suppress(torch.OutOfMemoryError), torch.no_grad(), devices.precision.autocast():
        return model.row_losses(batch.to(devices.device))
    if len(rows) == 1:
        raise LuthierError("memory ran out while one row was scored", "lower model.max_tokens")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    halves = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    return [loss for half in halves for loss in _losses(model, lessons, layout, devices, supply, half)]
