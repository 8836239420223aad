"""Which sources a recipe's stages read, what each is for, and what a stage has been trained on before it begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from luthier.data.building.request import TableRequest
from luthier.errors import RequestError
from luthier.recipe import Recipe
from luthier.recipe_data import Source


def table_request(stages: Mapping[str, Recipe]) -> TableRequest:
    """The table that all stages share. Raises RequestError where stages disagree on how a source is read."""
    first_name, first = next(iter(stages.items()))
    found: dict[str, tuple[Source, str]] = {}
    for name, stage in stages.items():
        for what, one, other in (
            *(_chat_settings(stage, first) if stage.task.of_text else ()),
            ("data.columns", stage.data.columns, first.data.columns),
            ("data.limits", stage.data.limits, first.data.limits),
            ("data.steps", stage.data.steps, first.data.steps),
            ("data.duplicates", stage.data.duplicates, first.data.duplicates),
            ("data.balance", stage.data.balance, first.data.balance),
            ("task.scale", stage.task.scale, first.task.scale),
            ("task.describe", stage.task.describe, first.task.describe),
        ):
            if one != other:
                raise RequestError(
                    f"stages {first_name} and {name}: {what} differs, and one table is read for all stages",
                    "give it once, outside the stages, or run the stages as two recipes",
                )
        for split in ("train", "test"):
            for source in getattr(stage.data, split):
                entry = (stage.data.sources[source], split)
                if found.setdefault(source, entry) != entry:
                    raise RequestError(
                        f"stage {name}: source {source} is read otherwise, or for another split, in an earlier stage",
                        "give sources that differ different names, and keep held-out ones held out in every stage",
                    )
    return replace(TableRequest.of(first), sources=tuple(found.values()))


def _chat_settings(stage: Recipe, first: Recipe) -> list[tuple[str, object, object]]:
    """What tables of chats are split and mixed by; graded rows are split when a stage is prepared."""
    names = ("validation_fraction", "test_fraction", "mix")
    found: list[tuple[str, object, object]] = [
        (f"data.{name}", getattr(stage.data, name), getattr(first.data, name)) for name in names
    ]
    return [*found, ("seed", stage.seed, first.seed)]


def trained_sources(stages: Mapping[str, Recipe], name: str) -> list[str]:
    """Every source whose train rows have shaped a stage when it is done: its own, and those of its ancestors."""
    found: list[str] = []
    while name:
        found += [source for source in stages[name].data.train if source not in found]
        name = stages[name].start_from
    return found
