"""How long a row takes here: a few are trained for real, and the result is thrown away."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from luthier.data.building.rows import TableRow
from luthier.data.table import Table
from luthier.models.adapters import sound_is_frozen
from luthier.models.batches import collate
from luthier.models.encode import PromptEncoder, encode_rows
from luthier.models.learner import StepWeights
from luthier.models.load import Base
from luthier.models.verdict import VerdictModel
from luthier.models.verdict_features import verdict_features
from luthier.recipe import Recipe
from luthier.runtime.devices import Devices


def seconds_per_row(
    recipe: Recipe, base: Base, model: VerdictModel, items: Sequence[TableRow], tables: dict[str, Table], folder: Path
) -> float:
    """Seconds of one row's forward and backward pass, without making its features (that happens once)."""
    devices = Devices(recipe.model.dtype)
    devices.place(model)

    def data(reference: str) -> bytes:
        table = next(t for t in tables.values() if any(reference in item.row.media for item in t.rows))
        return table.media_bytes(reference)

    rows = [item.row for item in items]
    store, spelled = verdict_features(base, recipe, rows, data, folder, sound_is_frozen(recipe.model))
    encoder = PromptEncoder.of(base, recipe)
    examples, _ = encode_rows(rows, encoder, spelled, lambda row: (0.5, 0))
    if not examples:
        return 0.0
    batch = collate(examples, store, base.tokenizer.pad_token_id).to(devices.device)
    best = float("inf")
    for _ in range(3):  # the first pass warms up
        begin = time.monotonic()
        with devices.precision.autocast():
            loss, _ = model.loss(batch, StepWeights(len(examples), 0.0))
        loss.backward()
        float(loss.detach())
        best = min(best, time.monotonic() - begin)
        model.zero_grad(set_to_none=True)
    return best / len(examples)
