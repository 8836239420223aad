"""What would stop a run later, looked for before anything is trained, and told all at once.

Every stage is looked at, not only the first: a second stage whose base cannot be loaded is no surprise for the night.
Weights are not loaded here: the modules of a base are known from its config. What only weights can tell (some are
missing, the head does more than its config says) is told when a stage begins.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from luthier.console import say
from luthier.data.table import iter_batches, iter_rows
from luthier.errors import LuthierError, RecipeError
from luthier.models import adapters, quantized
from luthier.models.attention import use_packed_attention
from luthier.models.chat import ChatTemplate, load_tokenizer
from luthier.models.text_base import weightless_base
from luthier.models.tokens import add_text_tokens, name_text_tokens
from luthier.recipe import Recipe
from luthier.rundir import RunDir
from luthier.runtime.devices import Devices
from luthier.runtime.disk import check_room, most_checkpoints, planned_bytes
from luthier.runtime.memory_estimate import fits
from luthier.runtime.tracking import missing_trackers
from luthier.stages.chat_cost import feed_load, memory_of, sample_feed, supply_of_table
from luthier.stages.examination import check_exam
from luthier.train.optim import check_optimizer

SAMPLE = 1000
"""Rows whose lengths tell the memory of a stage: the first of a shuffled table, and so a random sample of it."""


@dataclass
class Problems:
    """What is wrong, by stage; a thing that all stages share is told once."""

    lines: dict[str, list[str]]

    @classmethod
    def none(cls) -> Problems:
        return cls({})

    def add(self, stage: str, line: str) -> None:
        self.lines.setdefault(line, []).append(stage)

    def attempt(self, stage: str, work: Callable[[], Any]) -> Any:
        """Do something that may raise a LuthierError, and keep what it says."""
        try:
            return work()
        except LuthierError as error:
            self.add(stage, str(error))
            return None

    def all(self) -> list[str]:
        """One text for each, naming the stages that it stops."""
        return [f"stage {', '.join(stages)}: {line}" for line, stages in self.lines.items()]


def look_ahead(stages: Mapping[str, Recipe], folder: Path | None = None) -> list[str]:
    """What can be known of stages before there are rows: trackers, optimizer, precision, tokenizer, exams, modules,
    disk.

    `folder` is where the checkpoints of all of them will lie; None: the disk is not asked.
    """
    found = Problems.none()
    trained: dict[str, int] = {}
    for name, recipe in stages.items():
        for line in missing_trackers(recipe.track.trackers):
            found.add(name, line)
        if not recipe.task.of_text:
            continue
        devices = found.attempt(name, partial(Devices, recipe.model.dtype))
        found.attempt(name, partial(check_optimizer, recipe.train))
        tokenizer = found.attempt(name, partial(_tokenizer, recipe))
        for exam in recipe.evaluate.exams if tokenizer is not None else ():
            found.attempt(name, partial(check_exam, recipe, exam, tokenizer))
        if devices is not None and tokenizer is not None:
            trained[name] = found.attempt(name, partial(_trained_bytes, recipe, tokenizer, devices)) or 0
    if folder is not None and trained:
        found.attempt(", ".join(trained), partial(_room, stages, trained, folder))
    return found.all()


def look_at_rows(stages: Mapping[str, Recipe], table: Path) -> list[str]:
    """What a built table tells: splits without rows, and stages that do not fit into memory."""
    return [*look_at_splits(stages, table), *_look_at_memory(stages, table)]


def look_at_splits(stages: Mapping[str, Recipe], table: Path) -> list[str]:
    """Stages that have no rows to train on, to validate on where the recipe wants that, or to be scored on."""
    counts = Counter[tuple[str, str]]()
    for batch in iter_batches(table, ["split", "source"]):
        counts.update(zip(batch.column("split").to_pylist(), batch.column("source").to_pylist(), strict=True))
    found = Problems.none()
    for name, recipe in stages.items():
        if not recipe.task.of_text:
            continue
        data, train = recipe.data, recipe.train
        if not any(counts["train", source] for source in data.train):
            found.add(name, "data.train: no row is left to train on (the ledger above says where they went)")
        validates = any(counts["validation", source] for source in data.train)
        for key, wanted in (
            ("select", train.select == "best"),
            ("early_stopping_patience", train.early_stopping_patience > 0 and train.select != "exam"),
            ("validate_every", train.validate_every > 0),
        ):
            if wanted and not validates:
                found.add(name, f"train.{key}: there is no validation row (raise data.validation_fraction)")
        for source in data.test:
            if not counts["test", source]:
                found.add(name, f"data.test: {source} has no row left to score on")
    return found.all()


def _look_at_memory(stages: Mapping[str, Recipe], table: Path) -> list[str]:
    found = Problems.none()
    for name, recipe in stages.items():
        if recipe.task.of_text:
            for line in found.attempt(name, partial(_memory, name, recipe, table)) or []:
                found.add(name, line)
    return found.all()


def refuse(where: str, problems: list[str]) -> None:
    """Raise RecipeError with all of them, where there are any."""
    if problems:
        say("nothing was trained")
        raise RecipeError(where, problems)


def _tokenizer(recipe: Recipe) -> Any:
    found = load_tokenizer(recipe.model.base, recipe.model.revision)
    name_text_tokens(found, recipe.model.added_tokens)
    template = ChatTemplate.of(found)
    if any(recipe.data.sources[name].format != "text" for name in (*recipe.data.train, *recipe.data.test)):
        template.require_chats()
    return found


def _trained_bytes(recipe: Recipe, tokenizer: Any, devices: Devices) -> int:
    """Bytes of what is trained, in float32, from an adapter put on the base's shapes and told to pack as asked."""
    model = recipe.model
    base = weightless_base(model, tokenizer)
    quantized.loading_options(model.quantization, base.model.config, devices.precision.dtype, devices.device)
    kind = quantized.published(base.model.config) or model.quantization
    if kind:  # as the library marks a base that it has loaded so
        setattr(base.model, "is_loaded_in_8bit" if kind == "int8" else "is_loaded_in_4bit", True)
    tuned = adapters.attach(base, model, add_text_tokens(base, model.added_tokens, recipe.seed), recipe.seed)
    if recipe.train.packing:
        use_packed_attention(adapters.bare(tuned))
    return sum(4 * parameter.numel() for parameter in tuned.parameters() if parameter.requires_grad)


def _room(stages: Mapping[str, Recipe], trained: Mapping[str, int], folder: Path) -> None:
    """Whether the checkpoints of all stages have room in a run's folder, which may hold some of them already."""
    count = total = 0
    for name, size in trained.items():
        train = stages[name].train
        there = len(list(RunDir(folder).stage(name).checkpoints.glob("step-*")))
        planned = train.max_steps // train.save_every + 1  # where the rows decide it, training looks again
        missing = max(0, most_checkpoints(train.keep_checkpoints, train.select == "best", planned) - there)
        count += missing
        total += missing * planned_bytes(size, train.optimizer)
    if count:
        check_room(folder, math.ceil(total / count), count)


def _memory(name: str, recipe: Recipe, table: Path) -> list[str]:
    """What a sample of a stage's rows says of the memory that it needs; on a GPU a run halves its passes to fit."""
    lines = _too_large(name, recipe, table)
    on_gpu = (
        Devices(recipe.model.dtype).device.type == "cuda"
    )  # elsewhere the system ends a process that takes too much
    if not lines or not on_gpu or recipe.train.micro_batch_size == 1:
        return lines
    smallest = _too_large(name, replace(recipe, train=replace(recipe.train, micro_batch_size=1)), table)
    if not smallest:
        say(f"stage {name}: {lines[0]}; forward passes will be halved until they fit")
    return smallest


def _too_large(name: str, recipe: Recipe, table: Path) -> list[str]:
    devices, tokenizer = Devices(recipe.model.dtype), _tokenizer(recipe)
    rows = (item for item in iter_rows(table, {"split": "train"}) if item.row.provenance.source in recipe.data.train)
    feed = sample_feed(recipe, tokenizer, islice(rows, SAMPLE), supply_of_table(recipe, tokenizer, table))
    if feed is None:  # none of these can be learned from; whether any can is seen when all are encoded
        return []
    load = feed_load(feed, feed.steps_per_epoch)
    try:
        estimate = memory_of(recipe, tokenizer, feed, load, devices.precision)
    except RuntimeError as error:  # an architecture that reads values on its way, which a walk without them has not
        say(f"stage {name}: its memory is not foretold: {str(error).strip().splitlines()[0][:200]}")
        return []
    return fits(estimate, recipe, devices.device)
