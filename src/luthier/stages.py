"""One stage from rows to scores: train, judge the held-out answers, write the records. Stage follows stage.

This is where training and evaluation meet; neither imports the other. Everything that a stage leaves is written
so that a kill at any point loses at most the work since the last checkpoint: adapter/ is sealed when training is
done, stage.json is written last of all.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from luthier.assess.calibration import Calibration, calibrate, fit_calibration
from luthier.assess.metrics import VerdictItems, verdict_scores
from luthier.assess.targets import TargetMethod, event_truth, make_target, target_table
from luthier.console import say
from luthier.data.media import load_audio
from luthier.data.split import check_groups, check_media, validation_split
from luthier.data.table import Table, TableRow
from luthier.errors import DataError, LuthierError
from luthier.evaluate.verdicts import Judge, Judged, soft_log_loss, swap_recordings
from luthier.files import MANIFEST, atomic_folder, read_json, sha256_file, write_json, write_jsonl
from luthier.models import adapters, package
from luthier.models.batches import plan_micros
from luthier.models.encode import Example, PromptEncoder, encode_rows
from luthier.models.features import FeatureStore
from luthier.models.load import Base, load_base
from luthier.models.tokens import add_learned_tokens, answer_ids, initialise_learned_tokens
from luthier.models.verdict import VerdictModel, level_count
from luthier.recipe import Recipe
from luthier.records import Prediction, StageRecord
from luthier.rundir import RunDir, StageDir
from luthier.runtime.checkpoints import Checkpoints, load_model, save_model
from luthier.runtime.devices import Devices
from luthier.schema import Row
from luthier.train.loop import Job, train
from luthier.train.optim import make_optimizer
from luthier.train.plan import make_plan

_CHANCE = 0.08
"""How far from 0.5 an AUROC over swapped recordings may lie and still count as chance."""


@dataclass
class Prepared:
    """A stage's model and rows, ready to train or judge."""

    base: Base
    model: VerdictModel
    judge: Judge
    examples: dict[str, list[Example]]
    """By role: train, validation, test."""
    dropped: Counter[str]
    method: TargetMethod
    about: package.Package
    audio_token_id: int
    truth: dict[str, dict[str, float]]
    """Numeric columns carried along, by row id: simulated answers bring their true probabilities."""


def run_stage(run: RunDir, name: str, recipe: Recipe, table: Table, *, resume: bool, resume_line: str) -> None:
    """Run one stage, or go on with it. A finished stage is left alone."""
    stage = run.stage(name)
    if stage.finished:
        say(f"stage {name}: finished before, left as it is")
        return
    say(f"stage {name}")
    stage.path.mkdir(parents=True, exist_ok=True)
    ready = prepare(run, name, recipe, table)
    trained = _train(ready, stage, recipe, resume=resume, resume_line=resume_line)
    _judge(ready, stage, recipe, trained)


def build_model(recipe: Recipe, seed: int) -> tuple[Base, VerdictModel, package.Package, torch.Tensor]:
    """Base, read-out and learned tokens as the recipe says, not yet trained. The last value is new tokens' rows."""
    base = load_base(recipe.model)
    digest = package.base_digest(base)
    answers = answer_ids(base.tokenizer, recipe.task.answers)
    tokens = add_learned_tokens(base.tokenizer, base.model, recipe.model.learned_tokens)
    initialise_learned_tokens(base.tokenizer, base.model, tokens, seed)
    rows = base.model.get_input_embeddings().weight[sorted(tokens.values())].detach().clone()
    tuned = adapters.attach(base, recipe.model, tokens, seed)
    if recipe.train.gradient_checkpointing:
        base.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VerdictModel(tuned, base.family, recipe.task, answers)
    return base, model, package.describe(base, recipe, answers, tokens, digest), rows


def prepare(run: RunDir, name: str, recipe: Recipe, table: Table) -> Prepared:
    """Load, encode and check everything of a stage."""
    rows = _split_rows(recipe, table)
    seed = recipe.seed + sum(name.encode())
    base, model, about, fresh_tokens = build_model(recipe, seed)
    devices = Devices(recipe.model.dtype)
    devices.place(model)
    method = make_target(recipe.task.target, recipe.task.scale)
    store = FeatureStore(run.features, base.family, base.extractor,
                         functools.partial(_waveform, table=table, limits=recipe.data.limits), base.model,
                         frozen=adapters.sound_is_frozen(recipe.model))
    lengths = store.prepare(media for found in rows.values() for row in found for media in row.media)
    audio = base.family.audio_token_id(base.model)
    encoder = PromptEncoder(base.tokenizer, audio, recipe.task.instruction, recipe.model.learned_tokens,
                            recipe.model.max_tokens)
    examples, dropped = {}, Counter[str]()
    for role, found in rows.items():
        examples[role], lost = encode_rows(found, encoder, lengths, functools.partial(_label, method, recipe))
        dropped.update(lost)
        if not examples[role] and role != "validation":
            raise DataError(f"stage {name}: no {role} rows are left after encoding ({dict(dropped)})",
                            "raise model.max_tokens, or look at the prompts")
    levels = Counter(example.level for example in examples["train"])
    model.initialise_head([levels[k] for k in range(level_count(recipe.task.scale))])
    if recipe.start_from:
        _start_from(run.stage(recipe.start_from), recipe, model, base, about, fresh_tokens)
    judge = Judge(model, store, devices, base.tokenizer.pad_token_id, recipe.evaluate.batch_size)
    truth = {item.row.id: item.aux for item in table.select(recipe.data.test, "test")}
    return Prepared(base, model, judge, examples, dropped, method, about, audio, truth)


def _start_from(earlier: StageDir, recipe: Recipe, model: VerdictModel, base: Base, about: package.Package,
                fresh_tokens: torch.Tensor) -> None:
    before = package.Package.read(earlier.adapter)
    package.check(before, about.base_sha256, about.learned_tokens, earlier.adapter)
    load_model(model, earlier.adapter)
    if recipe.learned_tokens == "new":
        adapters.reset_tokens(model.language_model, base, about.learned_tokens, fresh_tokens)


def _waveform(reference: str, *, table: Table, limits: Any) -> Any:
    return load_audio(table.media_bytes(reference), limits)


def _label(method: TargetMethod, recipe: Recipe, row: Row) -> tuple[float, int]:
    scale, grade = recipe.task.scale, float(row.target.grade or 0.0)
    place = (grade - scale.minimum) / scale.step
    if recipe.task.readout == "ordinal" and abs(place - round(place)) > 1e-6:
        raise DataError(f"row {row.id}: grade {grade:g} is between the steps of the scale ({scale.step:g})",
                        "set task.scale.step, or choose task.readout tokens or head")
    return method(grade, row.target.raters), round(place)


def _split_rows(recipe: Recipe, table: Table) -> dict[str, list[Row]]:
    train_rows: list[TableRow] = table.select(recipe.data.train, "train")
    test_rows: list[TableRow] = table.select(recipe.data.test, "test")
    check_groups(train_rows, test_rows)
    check_media(train_rows, test_rows)
    kept, validation = validation_split(train_rows, recipe.data.validation_fraction, recipe.seed)
    return {"train": [r.row for r in kept], "validation": [r.row for r in validation],
            "test": [r.row for r in test_rows]}


def _train(ready: Prepared, stage: StageDir, recipe: Recipe, *, resume: bool, resume_line: str) -> dict[str, Any]:
    """Train, unless a sealed adapter says that it was done. Returns what the record needs."""
    if (stage.adapter / MANIFEST).is_file():
        load_model(ready.model, stage.adapter)
        found: dict[str, Any] = read_json(stage.adapter / MANIFEST)["training"]
        return found
    settings, examples = recipe.train, ready.examples["train"]
    plan = make_plan(len(examples), settings)
    mark = recipe.task.scale.pass_mark if recipe.task.ranking_weight else None
    micros = plan_micros(examples, batch_size=settings.batch_size, micro_batch_size=settings.micro_batch_size,
                         epochs=plan.epochs, seed=recipe.seed, pass_mark=mark)
    optimizer = make_optimizer(ready.model, settings, recipe.model.learned_tokens.learning_rate)
    validation = ready.examples["validation"]
    truths = np.array([event_truth(recipe.task.event, e.grade, recipe.task.scale) for e in validation])
    begin = _fingerprint(ready.model)
    done = train(Job(
        model=ready.model, optimizer=optimizer, plan=plan, settings=settings, seed=recipe.seed, micros=micros,
        examples=examples, store=ready.judge.store, pad_id=ready.judge.pad_id, devices=ready.judge.devices,
        checkpoints=Checkpoints(stage.checkpoints, recipe.model.base, settings.keep_checkpoints), metrics=stage.metrics,
        validate=(lambda: soft_log_loss(ready.judge(validation, "validating").p_pass, truths)) if validation else None,
        resume_line=resume_line), resume)
    record = {"steps": done.step, "epochs": round(done.step / plan.steps_per_epoch, 4),
              "seconds": round(done.seconds, 2), "rows": done.rows, "learning": _learning(begin, ready.model)}
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


def _judge(ready: Prepared, stage: StageDir, recipe: Recipe, trained: dict[str, Any]) -> None:
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
    write_json(stage.record, StageRecord(
        name=stage.path.name, start_from=recipe.start_from, learned_tokens=recipe.learned_tokens,
        steps=trained["steps"], epochs=trained["epochs"], seconds=trained["seconds"], trainable_parameters=trainable,
        total_parameters=sum(p.numel() for p in ready.model.parameters()),
        target={"method": ready.method.name, "event": ready.method.event, "formula": ready.method.formula},
        target_table=[list(pair) for pair in target_table(ready.method, recipe.task.scale)], checks=checks,
        calibration=trained["calibration"],
        answers_per_second={"train": round(trained["rows"] / max(trained["seconds"], 1e-6), 2),
                            "score": round(len(test) / seconds, 2)},
        adapter_sha256=sha256_file(stage.adapter / adapters.WEIGHTS), learning=trained["learning"],
        dropped_at_encoding=dict(ready.dropped)).to_json())


def _predictions(test: Sequence[Example], judged: Judged, recipe: Recipe,
                 calibration: Calibration) -> list[Prediction]:
    calibrated = calibrate(judged.p_pass, calibration.temperature)
    return [Prediction(
        id=e.id, source=e.source, group=e.group, grade=e.grade, passed=e.grade >= recipe.task.scale.pass_mark - 1e-9,
        answer=int(judged.p_pass[i] > 0.5), p_pass=float(judged.p_pass[i]), p_pass_calibrated=float(calibrated[i]),
        event=recipe.task.event, held_back=list(e.held_back),
        p_panel=None if judged.p_panel is None else float(judged.p_panel[i]),
        p_rater=None if judged.p_rater is None else float(judged.p_rater[i]),
        grade_mean=None if judged.grade_mean is None else float(judged.grade_mean[i]))
        for i, e in enumerate(test)]


def _scores(test: Sequence[Example], p: Any, recipe: Recipe) -> dict[str, Any]:
    items = VerdictItems([e.id for e in test], [e.group for e in test], [e.grade for e in test], [float(x) for x in p],
                         [e.held_back for e in test], recipe.task.event)
    return verdict_scores(items, recipe.task.scale, seed=recipe.seed, resamples=recipe.evaluate.resamples)


def _reference(ready: Prepared, test: Sequence[Example], scores: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """The Bayes row on the same items, where the true P(panel | recording) is known; and our share of its AUROC."""
    known = [ready.truth[e.id].get("p_panel") for e in test]
    if any(p is None for p in known) or "auroc" not in scores:
        return {}
    bayes = _scores(test, known, recipe)
    ratio = {"value": scores["auroc"]["value"] / bayes["auroc"]["value"], "ci": None, "n": len(test)}
    return {"reference": {"bayes.auroc": bayes["auroc"], "bayes.accuracy": bayes["accuracy"], "ratio.auroc": ratio}}


def _deafness(ready: Prepared, test: Sequence[Example], recipe: Recipe,
              scores: dict[str, Any]) -> dict[str, Any]:
    """AUROC with recordings swapped among the answers: at chance when the verdict comes from the sound."""
    swapped = swap_recordings(test, ready.audio_token_id, recipe.seed)
    shuffled = _scores(swapped, ready.judge(swapped, "deafness test").p_pass, recipe).get("auroc")
    own = scores.get("auroc")
    if shuffled is None or own is None:
        return {"hears": None, "message": "The test rows have one class only, so the deafness test says nothing."}
    at_chance = abs(shuffled["value"] - 0.5) <= _CHANCE or shuffled["ci"][0] <= 0.5 <= shuffled["ci"][1]
    tells_apart = own["ci"][0] > 0.5
    message = ("The verdict comes from the sound." if at_chance and tells_apart else
               "The verdicts cannot be told from chance, with the right recordings or swapped ones."
               if not tells_apart else
               "Part of the verdict does not come from the sound: with swapped recordings AUROC stays away from chance.")
    if not (at_chance and tells_apart):
        say(f"WARNING, deafness test: {message}")
    return {"auroc_shuffled": shuffled, "auroc": own, "hears": bool(at_chance and tells_apart), "message": message}
