"""The held-out answers of a stage: predictions, scores, the deafness test, the stage's record."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from luthier.assess.calibration import Calibration, calibrate
from luthier.assess.metrics import VerdictItems, verdict_scores
from luthier.assess.targets import target_table
from luthier.console import say
from luthier.evaluate.verdicts import Judged, swap_media
from luthier.files import sha256_file, write_json, write_jsonl
from luthier.models import adapters
from luthier.models.encode import Example
from luthier.recipe import Recipe
from luthier.records import Prediction, StageRecord
from luthier.rundir import StageDir
from luthier.stages.prepare import Prepared

_WORDS = {"audio": ("sound", "recordings"), "image": ("picture", "pictures"), "video": ("video", "videos")}
_CHANCE = 0.08
"""How far from 0.5 an AUROC over swapped media may lie and still count as chance."""


def judge(ready: Prepared, stage: StageDir, recipe: Recipe, trained: dict[str, Any]) -> None:
    """Predictions, scores and checks of the held-out rows; stage.json last."""
    test, calibration = ready.examples["test"], Calibration(**trained["calibration"])
    begin = time.monotonic()
    judged = ready.judge(test, "judging")
    seconds = max(time.monotonic() - begin, 1e-6)
    predictions = _predictions(test, judged, recipe, calibration)
    scores = _scores(test, judged.p_pass, recipe)
    calibrated = _scores(test, calibrate(judged.p_pass, calibration.temperature), recipe)
    scores |= {f"calibrated.{key}": calibrated[key] for key in ("log_loss", "brier", "ece") if key in calibrated}
    scores |= _reference(ready, test, scores, recipe)
    checks = {"deafness": _deafness(ready, test, recipe, scores)} if recipe.evaluate.deafness_test else {}
    write_jsonl(stage.predictions, [prediction.to_json() for prediction in predictions])
    write_json(stage.scores, scores)
    trainable = sum(p.numel() for p in ready.model.parameters() if p.requires_grad)
    write_json(
        stage.record,
        StageRecord(
            name=stage.path.name,
            start_from=recipe.start_from,
            learned_tokens=recipe.learned_tokens,
            steps=trained["steps"],
            epochs=trained["epochs"],
            seconds=trained["seconds"],
            trainable_parameters=trainable,
            total_parameters=sum(p.numel() for p in ready.model.parameters()),
            scale=asdict(recipe.task.scale),
            target={"method": ready.method.name, "event": ready.method.event, "formula": ready.method.formula},
            target_table=[list(pair) for pair in target_table(ready.method, recipe.task.scale)],
            checks=checks,
            calibration=trained["calibration"],
            answers_per_second={
                "train": round(trained["rows"] / max(trained["seconds"], 1e-6), 2),
                "score": round(len(test) / seconds, 2),
            },
            adapter_sha256=sha256_file(stage.adapter / adapters.WEIGHTS),
            base_sha256=ready.base.digest,
            learning=trained["learning"],
            dropped_at_encoding=dict(ready.dropped),
        ).to_json(),
    )


def _predictions(test: Sequence[Example], judged: Judged, recipe: Recipe, calibration: Calibration) -> list[Prediction]:
    calibrated = calibrate(judged.p_pass, calibration.temperature)
    return [
        Prediction(
            id=e.id,
            source=e.source,
            group=e.group,
            grade=e.grade,
            passed=e.grade >= recipe.task.scale.pass_mark - 1e-9,
            answer=int(judged.p_pass[i] > 0.5),
            p_pass=float(judged.p_pass[i]),
            p_pass_calibrated=float(calibrated[i]),
            event=recipe.task.event,
            held_back=list(e.held_back),
            p_panel=None if judged.p_panel is None else float(judged.p_panel[i]),
            p_rater=None if judged.p_rater is None else float(judged.p_rater[i]),
            grade_mean=None if judged.grade_mean is None else float(judged.grade_mean[i]),
        )
        for i, e in enumerate(test)
    ]


def _scores(test: Sequence[Example], p: Any, recipe: Recipe) -> dict[str, Any]:
    items = VerdictItems(
        [e.id for e in test],
        [e.group for e in test],
        [e.grade for e in test],
        [float(x) for x in p],
        [e.held_back for e in test],
        recipe.task.event,
    )
    return verdict_scores(items, recipe.task.scale, seed=recipe.seed, resamples=recipe.evaluate.resamples)


def _reference(ready: Prepared, test: Sequence[Example], scores: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """The Bayes row on the same items, where the true P(panel | recording) is known; and our share of its AUROC."""
    known = [ready.truth[e.id].get("p_panel") for e in test]
    if any(p is None for p in known) or "auroc" not in scores:
        return {}
    bayes = _scores(test, known, recipe)
    ratio = {"value": scores["auroc"]["value"] / bayes["auroc"]["value"], "ci": None, "n": len(test)}
    return {"reference": {"bayes.auroc": bayes["auroc"], "bayes.accuracy": bayes["accuracy"], "ratio.auroc": ratio}}


def _deafness(ready: Prepared, test: Sequence[Example], recipe: Recipe, scores: dict[str, Any]) -> dict[str, Any]:
    """AUROC with media swapped among the answers: at chance when the verdict comes from what is heard or seen."""
    swapped, (one, many) = swap_media(test, recipe.seed), _WORDS[ready.about.judges]
    shuffled = _scores(swapped, ready.judge(swapped, "deafness test").p_pass, recipe).get("auroc")
    own = scores.get("auroc")
    if shuffled is None or own is None:
        return {"hears": None, "message": "The test rows have one class only, so the deafness test says nothing."}
    at_chance = abs(shuffled["value"] - 0.5) <= _CHANCE or shuffled["ci"][0] <= 0.5 <= shuffled["ci"][1]
    tells_apart = own["ci"][0] > 0.5
    message = (
        f"The verdict comes from the {one}."
        if at_chance and tells_apart
        else f"The verdicts cannot be told from chance, with the right {many} or swapped ones."
        if not tells_apart
        else f"Part of the verdict does not come from the {one}: with swapped {many} AUROC stays away from chance."
    )
    if not (at_chance and tells_apart):
        say(f"WARNING, deafness test: {message}")
    return {"auroc_shuffled": shuffled, "auroc": own, "hears": bool(at_chance and tells_apart), "message": message}
