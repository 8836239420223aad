"""The training of a stage, from its plan to a sealed adapter folder."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from luthier.assess.calibration import Calibration, fit_calibration
from luthier.assess.metrics import log_loss
from luthier.assess.targets import event_truth
from luthier.errors import LuthierError
from luthier.files import MANIFEST, atomic_folder, read_json, verify_folder
from luthier.models.batches import plan_micros
from luthier.recipe import Recipe
from luthier.rundir import StageDir
from luthier.runtime.checkpoints import Checkpoints, load_model, save_model, set_aside
from luthier.stages.prepare import Prepared
from luthier.train.loop import Job, train
from luthier.train.optim import make_optimizer
from luthier.train.plan import make_plan


def tune(ready: Prepared, stage: StageDir, recipe: Recipe, *, resume: bool, resume_line: str) -> dict[str, Any]:
    """Train, unless a sealed adapter says that it was done. Returns what the record needs."""
    if stage.adapter.exists():
        wrong = verify_folder(stage.adapter)
        if wrong is None:
            load_model(ready.model, stage.adapter)
            found: dict[str, Any] = read_json(stage.adapter / MANIFEST)["training"]
            return found
        set_aside(stage.adapter, wrong)
    settings, examples = recipe.train, ready.examples["train"]
    plan = make_plan(len(examples), settings)
    mark = recipe.task.scale.pass_mark if recipe.task.ranking_weight else None
    micros = plan_micros(
        examples,
        batch_size=settings.batch_size,
        micro_batch_size=settings.micro_batch_size,
        epochs=plan.epochs,
        seed=recipe.seed,
        pass_mark=mark,
    )
    optimizer = make_optimizer(ready.model, settings, recipe.model.learned_tokens.learning_rate)
    validation = ready.examples["validation"]
    truths = np.array([event_truth(recipe.task.event, e.grade, recipe.task.scale) for e in validation])
    begin = _fingerprint(ready.model)
    done = train(
        Job(
            model=ready.model,
            optimizer=optimizer,
            plan=plan,
            settings=settings,
            seed=recipe.seed,
            micros=micros,
            examples=examples,
            store=ready.judge.store,
            pad_id=ready.judge.pad_id,
            devices=ready.judge.devices,
            checkpoints=Checkpoints(stage.checkpoints, recipe.model.base, settings.keep_checkpoints),
            metrics=stage.metrics,
            validate=(lambda: log_loss(ready.judge(validation, "validating").p_pass, truths)) if validation else None,
            resume_line=resume_line,
        ),
        resume,
    )
    record = {
        "steps": done.step,
        "epochs": round(done.step / plan.steps_per_epoch, 4),
        "seconds": round(done.seconds, 2),
        "rows": done.rows,
        "learning": _learning(begin, ready.model),
    }
    _save_adapter(ready, stage, recipe, record)
    return record


def _save_adapter(ready: Prepared, stage: StageDir, recipe: Recipe, record: dict[str, Any]) -> None:
    """adapter/: the PEFT folder, the head, the tokenizer, the calibration, sealed."""
    validation = ready.examples["validation"]
    calibration = Calibration(1.0, False, 0.0, 0.0, 0)
    if validation:
        p = ready.judge(validation, "calibrating").p_pass
        truths = [event_truth(recipe.task.event, e.grade, recipe.task.scale) for e in validation]
        calibration = fit_calibration(p, truths, [e.group for e in validation], seed=recipe.seed)
    ready.about.calibration = asdict(calibration)
    with atomic_folder(stage.adapter, {"training": {**record, "calibration": asdict(calibration)}}) as folder:
        save_model(ready.model, folder, recipe.model.base)
        ready.base.tokenizer.save_pretrained(str(folder))
        ready.about.write(folder)
    record["calibration"] = asdict(calibration)


def _fingerprint(model: torch.nn.Module) -> dict[str, tuple[float, float]]:
    """Two sums of every trained tensor: enough to see that it moved, without a copy of it."""
    found = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            flat = p.detach().double().reshape(-1)
            ramp = torch.arange(1, len(flat) + 1, device=flat.device, dtype=torch.float64)
            found[name] = (float(flat.square().sum()), float((flat * ramp).sum()))
    return found


def _learning(begin: dict[str, tuple[float, float]], model: torch.nn.Module) -> dict[str, Any]:
    """Which tensors moved. A training that moved none is an error: it looks like success otherwise."""
    end = _fingerprint(model)
    still = [name for name in begin if begin[name] == end[name]]
    if len(still) == len(begin):
        raise LuthierError("training changed no weight at all", "raise train.learning_rate or the number of steps")
    return {"tensors": len(begin), "moved": len(begin) - len(still), "still": still[:20]}
