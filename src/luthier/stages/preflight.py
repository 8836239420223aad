"""What would stop a chat run later, looked for before anything is trained, and told all at once.

Every stage is looked at, not only the first: a second stage whose base cannot be loaded is no surprise for the night.
Weights are not loaded here: the modules of a base are known from its config.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.console import say
from luthier.data.table import iter_batches
from luthier.errors import LuthierError, RecipeError
from luthier.models.chat import ChatTemplate, load_tokenizer
from luthier.models.targets import lora_targets, whole_modules
from luthier.models.text_base import skeleton
from luthier.recipe import Recipe
from luthier.runtime.devices import Devices
from luthier.runtime.tracking import missing_trackers
from luthier.train.optim import check_optimizer


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


def look_ahead(stages: Mapping[str, Recipe]) -> list[str]:
    """What can be known of every stage before there are rows: trackers, optimizer, precision, tokenizer, modules."""
    found = Problems.none()
    for name, recipe in stages.items():
        for line in missing_trackers(recipe.track.trackers):
            found.add(name, line)
        if recipe.task.kind != "chat":
            continue
        devices = found.attempt(name, lambda recipe=recipe: Devices(recipe.model.dtype))  # type: ignore[misc]
        found.attempt(name, lambda recipe=recipe: check_optimizer(recipe.train))  # type: ignore[misc]
        found.attempt(name, lambda recipe=recipe: _template(recipe))  # type: ignore[misc]
        if devices is not None:
            found.attempt(name, lambda recipe=recipe, devices=devices: _modules(recipe, devices))  # type: ignore[misc]
    return found.all()


def look_at_rows(stages: Mapping[str, Recipe], table: Path) -> list[str]:
    """Stages that have no rows to train on, to validate on where the recipe wants that, or to be scored on."""
    counts: dict[tuple[str, str], int] = {}
    for batch in iter_batches(table, ["split", "source"]):
        for pair in zip(batch.column("split").to_pylist(), batch.column("source").to_pylist(), strict=True):
            counts[pair] = counts.get(pair, 0) + 1
    found = Problems.none()
    for name, recipe in stages.items():
        if recipe.task.kind != "chat":
            continue
        data, train = recipe.data, recipe.train
        if not any(counts.get(("train", source)) for source in data.train):
            found.add(name, "data.train: no row is left to train on (the ledger above says where they went)")
        validates = any(counts.get(("validation", source)) for source in data.train)
        for key, wanted in (
            ("select", train.select == "best"),
            ("early_stopping_patience", train.early_stopping_patience > 0),
        ):
            if wanted and not validates:
                found.add(name, f"train.{key}: there is no validation row (raise data.validation_fraction)")
        for source in data.test:
            if not counts.get(("test", source)):
                found.add(name, f"data.test: {source} has no row left to score on")
    return found.all()


def refuse(where: str, problems: list[str]) -> None:
    """Raise RecipeError with all of them, where there are any."""
    if problems:
        say("nothing was trained")
        raise RecipeError(where, problems)


def _template(recipe: Recipe) -> None:
    ChatTemplate.of(load_tokenizer(recipe.model.base, recipe.model.revision))


def _modules(recipe: Recipe, devices: Devices) -> None:
    """Whether the adapter finds its modules, and a quantised base what it needs."""
    model, family = skeleton(recipe.model, devices.device)
    if recipe.model.tuning == "lora":
        targets = lora_targets(model, family, recipe.model.lora.target_modules)
        whole_modules(model, recipe.model.modules_to_save, targets)
