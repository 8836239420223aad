"""Models that describe pictures in a fixed form: what they are asked, and the fields that an answer holds.

Reads recipes of runs; refuses to know pages, engines and scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from luthier.engines.base import ServedModel
from luthier.engines.finding import run_recipes
from luthier.recipe_describe import DescribeSettings
from luthier.rundir import RunDir
from luthier.serve import look

_CAPTION = "Read from the answer"
_NONE = '<div class="quiet"><p>Not in the form that the run learned: no fields are read from this answer.</p></div>'


def describing(models: Iterable[ServedModel]) -> dict[str, DescribeSettings]:
    """By id, how each model of a describe run is asked and read."""
    tuned = [model for model in models if model.run is not None]
    recipes = {run: run_recipes(RunDir(run)) for run in {model.run for model in tuned} if run is not None}
    tasks = {model.id: recipes[model.run][model.stage].task for model in tuned if model.run is not None}
    return {id: task.describe for id, task in tasks.items() if task.kind == "describe"}


def told(settings: DescribeSettings) -> dict[str, Any]:
    """The same for programs."""
    return {"prompt": settings.prompt, "template": settings.template, "fields": dict(settings.kinds)}


def reader(settings: DescribeSettings) -> Callable[[str], str]:
    """What turns an answer into the HTML that is shown under it: its fields, or that it has none."""
    form = settings.form

    def fields(answer: str) -> str:
        found = form.read(answer)
        return _NONE if found is None else look.table(_CAPTION, ("Field", "Value"), list(found.items()))

    return fields
