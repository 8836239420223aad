"""Which models some runs can answer with: final adapters, sealed checkpoints, and the bases under them.

Reads records on disk alone. Whether an adapter fits its base is for the engine that puts it on to say.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from luthier.engines.base import ServedModel
from luthier.errors import RequestError
from luthier.files import MANIFEST
from luthier.recipe import Recipe
from luthier.recipefile import read_tree, resolve, stage_recipes
from luthier.rundir import RunDir, StageDir

_STEP = re.compile(r"step-(\d+)")


def find_models(runs: Sequence[Path]) -> list[ServedModel]:
    """All models of some run folders: of each finished stage its adapter and its checkpoints, newest first; the bases
    of chat stages last.

    Raises RequestError for a folder that is no run, one without a finished stage, and one that is given twice.
    """
    folders = [RunDir.open(path).path.resolve() for path in runs]
    twice = [str(path) for path, count in Counter(folders).items() if count > 1]
    if twice:
        raise RequestError(f"{twice[0]}: is given twice", "give each run once")
    found: list[ServedModel] = []
    for folder, name in zip(folders, names_apart(folders), strict=True):
        for stage, recipe in finished_stages(RunDir(folder)):
            found += _of_stage(RunDir(folder), stage, recipe, name)
    bases = dict.fromkeys(model.base for model in found if model.kind == "chat")
    return [*found, *(ServedModel(f"base:{base}", "chat", base) for base in bases)]


def model_called(name: str, models: Mapping[str, ServedModel]) -> ServedModel:
    """The model of this id. Raises RequestError with those that are alike."""
    if name not in models:
        alike = difflib.get_close_matches(name, models, 3, 0.4) or list(models)[:3]
        raise RequestError(f"{name!r} is not served here", f"choose one of {len(models)}, such as {', '.join(alike)}")
    return models[name]


def finished_stages(run: RunDir) -> list[tuple[StageDir, Recipe]]:
    """The stages of a run that are whole, in order. Raises RequestError where there is none."""
    stages = [(run.stage(name), recipe) for name, recipe in run_recipes(run).items() if run.stage(name).finished]
    if not stages:
        raise RequestError(f"{run.path}: no stage of it is finished", "let the run finish, or give another one")
    return stages


def run_recipes(run: RunDir) -> dict[str, Recipe]:
    """The recipe of each stage of a run, in order."""
    return stage_recipes(resolve(read_tree(run.recipe), []))


def _of_stage(run: RunDir, stage: StageDir, recipe: Recipe, name: str) -> list[ServedModel]:
    kind: Literal["chat", "verdict"] = "chat" if recipe.task.of_text else "verdict"
    label, base = f"{name}/{stage.path.name}", recipe.model.base
    found = [ServedModel(label, kind, base, run.path, stage.path.name, adapter=stage.adapter)]
    steps = {int(match[1]): path for path in stage.checkpoints.glob("step-*") if (match := _STEP.fullmatch(path.name))}
    for step, path in sorted(steps.items(), reverse=True):
        if (path / MANIFEST).is_file():  # written last: without it the folder is not whole
            found.append(ServedModel(f"{label}@{path.name}", kind, base, run.path, stage.path.name, step, path))
    return found


def names_apart(folders: Sequence[Path]) -> list[str]:
    """Names of folders; where two are equal, as much of what is above them as tells all of these apart."""
    found = [folder.name for folder in folders]
    for name in [name for name, count in Counter(found).items() if count > 1]:
        alike = [place for place, folder in enumerate(folders) if folder.name == name]
        depth = 2
        while len({folders[place].parts[-depth:] for place in alike}) < len(alike):
            depth += 1
        for place in alike:
            found[place] = "-".join(part.strip("/") for part in folders[place].parts[-depth:])
    return found
