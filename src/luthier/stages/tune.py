"""The training of a verdict stage: what its feed, its validation and its adapter folder are."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from luthier.assess.calibration import Calibration, fit_calibration
from luthier.assess.metrics import log_loss
from luthier.assess.targets import event_truth
from luthier.models.batches import VerdictFeed
from luthier.recipe import Recipe
from luthier.stages.fit import Fit
from luthier.stages.prepare import Prepared


def verdict_fit(ready: Prepared, recipe: Recipe) -> Fit:
    """A prepared verdict stage as something to be trained."""
    examples, validation = ready.examples["train"], ready.examples["validation"]
    mark = recipe.task.scale.pass_mark if recipe.task.ranking_weight else None
    truths = np.array([event_truth(recipe.task.event, e.grade, recipe.task.scale) for e in validation])

    def validate() -> float:
        return log_loss(ready.judge(validation, "validating").p_pass, truths)

    def seal(folder: Path) -> dict[str, Any]:
        calibration = _calibrate(ready, recipe)
        ready.about.calibration = asdict(calibration)
        ready.model.save(folder)
        ready.base.tokenizer.save_pretrained(str(folder))
        ready.about.write(folder)
        return {"calibration": asdict(calibration)}

    return Fit(
        learner=ready.model,
        feed=VerdictFeed(examples, ready.judge.store, ready.judge.pad_id, recipe.train, recipe.seed, mark),
        rows=len(examples),
        devices=ready.judge.devices,
        seal=seal,
        validate=validate if validation else None,
    )


def _calibrate(ready: Prepared, recipe: Recipe) -> Calibration:
    """A temperature from the validation rows, where there are any."""
    validation = ready.examples["validation"]
    if not validation:
        return Calibration(1.0, False, 0.0, 0.0, 0)
    p = ready.judge(validation, "calibrating").p_pass
    truths = [event_truth(recipe.task.event, e.grade, recipe.task.scale) for e in validation]
    return fit_calibration(p, truths, [e.group for e in validation], seed=recipe.seed)
