"""Whether a sweep makes sense, asked of the recipe before anything starts; and which trials may be compared.

Every combination is loaded as a run would load it, and all problems are given at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from luthier.errors import RecipeError
from luthier.files import json_text, sha256_bytes
from luthier.recipe import Recipe
from luthier.recipefile import load_recipe, stage_recipes, to_tree
from luthier.sweeping.figures import VALIDATION, Objective
from luthier.sweeping.space import Settings

Stages = dict[str, Recipe]
"""A recipe's stages by name, each resolved."""


def words(settings: Settings) -> list[str]:
    """Settings as `--set` takes them."""
    return [f"{key}={value}" for key, value in settings.items()]


def load_all(
    recipe: Path, overrides: Sequence[str], combinations: Sequence[Settings], problems: list[str]
) -> list[Stages]:
    """The stages of every combination that can be loaded; what is wrong with the others is added, each problem once."""
    found: list[Stages] = []
    seen: dict[str, Settings] = {}
    fixed = {word.partition("=")[0] for word in overrides}
    problems += [
        f"{key}: is set by --set and varied as well (leave one out)"
        for key in (combinations[0] if combinations else {})
        if key in fixed
    ]
    for settings in combinations:
        try:
            stages = stage_recipes(load_recipe(recipe, [*overrides, *words(settings)]))
        except RecipeError as error:
            problems += [line for line in error.problems if line not in problems]
            continue
        digest = sha256_bytes(json_text([to_tree(stage) for stage in stages.values()]).encode())
        if digest in seen:
            problems.append(
                f"{' '.join(words(settings))}: is the same run as {' '.join(words(seen[digest]))} (values that are "
                "equal, or a key that every stage overrides: vary stages.NAME.KEY)"
            )
        seen.setdefault(digest, settings)
        found.append(stages)
    return found


def objective_of(key: str, stage: str, stages: Stages, problems: list[str]) -> Objective:
    """What trials are ordered by: of the last stage, where none is named."""
    if stage and stage not in stages:
        problems.append(f"--stage {stage}: there is no such stage (there: {', '.join(stages)})")
    name = stage if stage in stages else list(stages)[-1]
    if key == VALIDATION and not stages[name].data.validation_fraction:
        problems.append(
            "data.validation_fraction: 0 leaves no validation loss to order trials by (set it above 0, or give "
            "--objective a score of held-out rows)"
        )
    return Objective(key, name)


def search_problems(trials: int, seeds: str, grid: Sequence[str]) -> list[str]:
    """What does not go with --search, or is missing for it."""
    found = []
    if grid or seeds:
        found.append("--search: draws every value itself (in place of --grid write KEY=A|B, and --set seed=N)")
    if trials < 1:
        found.append(f"--trials {trials}: must be at least 1")
    if find_spec("optuna") is None:
        found.append("--search: Optuna is not installed (pip install 'luthier[sweep]', or give a --grid)")
    return found


def measure(stages: Stages, objective: Objective) -> str:
    """A digest of everything that an objective's figures are over; the seed is left out, as it is a setting.

    Two trials whose measures differ cannot be ordered. A loss per token is over the rows, the tokens that the base
    makes of them, and which rows are too long; a score is over the held-out rows and what is asked of them.
    """
    stage = stages[objective.stage]
    data = asdict(stage.data)
    if objective.key == VALIDATION:
        model = stage.model
        tokens = [model.base, model.revision, model.max_tokens, model.added_tokens, stage.train.truncation]
        rows: Any = [data, tokens, stage.evaluate.validation_rows]
    else:
        rows = [[data["sources"][name] for name in stage.data.test], data["columns"], data["limits"], data["steps"]]
    return sha256_bytes(json_text([rows, asdict(stage.task)]).encode())


def table_key(stages: Stages) -> str:
    """A digest of what a run's table is made from: runs of one key share it."""
    return sha256_bytes(json_text([[asdict(s.data), asdict(s.task), s.seed] for s in stages.values()]).encode())
