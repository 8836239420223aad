"""`luthier check`: everything that can be known before training, and every problem at once."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from luthier.assess.targets import make_target, target_table
from luthier.chatcheck import check_chat
from luthier.checked import Checked
from luthier.console import table
from luthier.data.split import check_groups, check_media, validation_split
from luthier.data.table import Table, build_table
from luthier.errors import LuthierError
from luthier.publishing.request import find_endpoint
from luthier.recipe import Recipe
from luthier.recipefile import stage_recipes
from luthier.stages.sources import table_request, trained_sources
from luthier.train.plan import make_plan


def check(recipe: Recipe) -> Checked:
    """Check sources, targets, splits, steps and the base of every stage. Nothing is written or downloaded whole."""
    found = Checked()
    stages = stage_recipes(recipe)
    _publishing(stages, found)
    if recipe.task.of_text:
        check_chat(recipe, found)
        return found
    for name, stage in stages.items():
        _targets(name, stage, found)
    with tempfile.TemporaryDirectory(prefix="luthier-check-") as folder:
        tables = _sources(stages, Path(folder), found)
        for name, stage in stages.items():
            _stage(name, stage, trained_sources(stages, name), tables, found)
        _base(next(iter(stages.values())), tables, found)
    return found


def _publishing(stages: dict[str, Recipe], found: Checked) -> None:
    """Where stages would go, and whether there is a token for it. Nothing is asked of the hub."""
    for name, stage in stages.items():
        if not stage.publish.push:
            continue
        try:
            endpoint = find_endpoint(stage.publish.token_env)
        except LuthierError as error:
            found.problems.append(f"stage {name}: publish.push: {error}")
            continue
        whose = "private" if stage.publish.private else "public"
        found.sections.append(f"publishing: stage {name} to {endpoint.url}/{stage.publish.repo} ({whose})")
        found.figures.setdefault("publish", {})[name] = stage.publish.repo


def _targets(name: str, stage: Recipe, found: Checked) -> None:
    try:
        method = make_target(stage.task.target, stage.task.scale)
    except LuthierError as error:
        found.problems.append(f"stage {name}: {error}")
        return
    rows = target_table(method, stage.task.scale)
    text = table(["grade", "P(pass)"], [[f"{grade:g}", f"{p:.3f}"] for grade, p in rows])
    note = ""
    if method.event not in (stage.task.event, "none") and stage.task.readout != "ordinal":
        note = (
            f"\nnote: {method.name} states the event {method.event}, the recipe asks for {stage.task.event}: p_pass is "
            f"trained towards the former and scored against the latter"
        )
    if method.event == "none":
        note = f"\nnote: {method.name} states no event: judge its probabilities only after calibration"
    section = f"targets: {method.name}, event {method.event}: {method.formula}\n{text}{note}"
    if section not in found.sections:  # stages mostly share it
        found.sections.append(section)
    found.figures.setdefault("target_table", {})[name] = [list(row) for row in rows]


def _sources(stages: dict[str, Recipe], folder: Path, found: Checked) -> dict[str, Table]:
    tables: dict[str, Table] = {}
    lines = []
    try:
        request = table_request(stages)
    except LuthierError as error:
        found.problems.append(str(error))
        return tables
    for source, split in request.sources:
        name = source.name
        try:
            tables[name] = build_table(replace(request, sources=((source, split),)), folder / name)
        except LuthierError as error:
            found.problems.append(f"data.sources.{name}: {error}")
            lines.append([name, split, "–", "–", "cannot be used"])
            continue
        grades = Counter(item.row.target.grade for item in tables[name].rows)
        minutes = sum(item.seconds for item in tables[name].rows) / 60
        lines.append(
            [
                name,
                split,
                str(len(tables[name].rows)),
                f"{minutes:.1f}",
                " ".join(f"{grade:g}:{count}" for grade, count in sorted(grades.items(), key=lambda g: g[0] or 0)),
            ]
        )
        found.figures.setdefault("rows", {})[name] = len(tables[name].rows)
        ledger = (folder / name / "ledger.jsonl").read_text(encoding="utf-8").splitlines()[0]
        found.figures.setdefault("ledger", []).append(ledger)
    found.sections.append("sources\n" + table(["source", "split", "rows", "minutes", "grades"], lines))
    return tables


def _stage(name: str, stage: Recipe, trained: list[str], tables: dict[str, Table], found: Checked) -> None:
    train = [item for source in stage.data.train if source in tables for item in tables[source].rows]
    before = [item for source in trained if source in tables for item in tables[source].rows]
    test = [item for source in stage.data.test if source in tables for item in tables[source].rows]
    if not train:
        return
    for leak in (check_groups, check_media):
        try:
            leak(before, test)
        except LuthierError as error:
            found.problems.append(f"stage {name}: {error}")
    try:
        kept, validation = validation_split(train, stage.data.validation_fraction, stage.seed)
    except LuthierError as error:
        found.problems.append(f"stage {name}: {error}")
        return
    plan = make_plan(len(kept), stage.train)
    found.figures.setdefault("steps", {})[name] = plan.steps
    found.sections.append(
        f"stage {name}: {len(kept)} rows to train on, {len(validation)} for validation, {len(test)} held out; "
        f"{plan.steps} steps of {stage.train.batch_size} ({plan.steps_per_epoch} an epoch, "
        f"{plan.warmup_steps} of warm-up)" + (f"; starts from {stage.start_from}" if stage.start_from else "")
    )


def _base(stage: Recipe, tables: dict[str, Table], found: Checked) -> None:
    """Load the base when it is here (a toy or a folder); ask the hub for its configuration alone otherwise."""
    from luthier.stages.prepare import build_model

    base_name = stage.model.base
    if not base_name.startswith("toy:") and not Path(base_name).is_dir():
        _hub_base(stage, found)
        return
    try:
        base, model, about, _ = build_model(stage, stage.seed)
    except LuthierError as error:
        found.problems.append(f"model: {error}")
        return
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    held = sum(p.numel() * p.element_size() for p in model.parameters())
    memory = held + trained * 12  # gradient and two moments in float32
    found.figures["parameters"] = {"trained": trained, "total": total, "bytes": memory}
    found.sections.append(
        f"model: {base_name}, {total:,} parameters, {trained:,} trained ({stage.model.tuning}); about "
        f"{memory / 2**20:,.0f} MiB for weights, gradients and AdamW, activations on top"
    )
    if _template(stage, base, tables, found, about.answers):
        _time(stage, base, model, tables, found)


def _hub_base(stage: Recipe, found: Checked) -> None:
    from transformers import AutoConfig

    from luthier.models.families import PHI4_MULTIMODAL

    revision = stage.model.revision or PHI4_MULTIMODAL.revision
    try:
        config = AutoConfig.from_pretrained(stage.model.base, revision=revision, trust_remote_code=False)
        found.sections.append(f"model: {stage.model.base}@{revision}, {config.model_type}")
    except (OSError, ValueError) as error:
        found.problems.append(
            f"model.base: {stage.model.base} cannot be reached: {str(error).strip().splitlines()[0][:160]}\n"
            "  mend: check the network, or --set model.base=FOLDER (toy:phi4-multimodal to try)"
        )


def _template(stage: Recipe, base: Any, tables: dict[str, Table], found: Checked, answers: dict[str, int]) -> bool:
    """The prompt of a first row as the model will see it, with its read-out position."""
    from luthier.models.encode import PromptEncoder

    rows = [item for source in tables.values() for item in source.rows]
    if not rows:
        return False
    encoder = PromptEncoder.of(base, stage)
    encoded = encoder.prompt_ids(rows[0].row.text, 3)
    if isinstance(encoded, str):
        found.problems.append(f"the first row cannot be encoded: {encoded}")
        return False
    found.sections.append(
        f"prompt of the first row (sound shown as 3 tokens):\n  {base.tokenizer.decode(encoded[0])!r}\n"
        f"  read-out at its last position; answers: pass = token {answers['pass']}, "
        f"fail = token {answers['fail']}"
    )
    return True


def _time(stage: Recipe, base: Any, model: Any, tables: dict[str, Table], found: Checked) -> None:
    """Train a few rows on this machine, throw the result away, and multiply."""
    from luthier.evaluate.probe import seconds_per_row

    items = [item for source in tables.values() for item in source.rows][: stage.train.micro_batch_size]
    with tempfile.TemporaryDirectory(prefix="luthier-probe-") as folder:
        seconds = seconds_per_row(stage, base, model, items, tables, Path(folder))
    rows = {name: plan * stage.train.batch_size for name, plan in found.figures.get("steps", {}).items()}
    found.figures["seconds"] = {name: round(seconds * count, 1) for name, count in rows.items()}
    found.sections.append(
        f"time on this machine, from {len(items)} rows tried ({seconds * 1000:.1f} ms each): "
        + ", ".join(f"stage {name} about {value / 60:.1f} minutes" for name, value in found.figures["seconds"].items())
    )
