"""Vectors of a chat stage's media, made before it trains where that is worth it: how often each will be looked at."""

from __future__ import annotations

from luthier.models import adapters
from luthier.models.senses.worth import Look, stock
from luthier.recipe_train import TrainConfig
from luthier.rundir import RunDir
from luthier.stages.chat_prepare import PreparedChat
from luthier.train.plan import make_plan

_SCORINGS = 2
"""Held-out rows are scored before and after training."""


def stock_features(ready: PreparedChat, run: RunDir, stage: str, train: TrainConfig) -> None:
    """Give the supply of a stage the stores that serve it; they lie in the run's folder, for all its stages.

    With several processes the leading one decides and encodes, and the others read. Raises MediaError for media that
    cannot be decoded.
    """
    if ready.supply is None:
        return
    model = adapters.bare(ready.model.language_model)
    devices = ready.devices
    with devices.leader_first(), devices.precision.autocast():
        stock(ready.supply, model, run.features, _looks(ready, train), train.feature_store, stage)


def _looks(ready: PreparedChat, train: TrainConfig) -> list[Look]:
    """Which media the stage reads, and how often."""
    plan = make_plan(ready.feed.rows_per_epoch, train)
    validations = plan.steps // train.validate_every if train.validate_every else plan.epochs
    found = [Look(list(ready.lessons.media()), plan.steps * train.batch_size / len(ready.lessons), training=True)]
    if ready.validation is not None:
        found.append(Look(list(ready.validation.media()), max(1, validations)))
    if ready.held_out is not None:
        found.append(Look(list(ready.held_out.media()), _SCORINGS))
    return found
