"""Stage follows stage: each is trained, judged and recorded, or left alone when it is finished.

A kill at any point loses at most the work since the last checkpoint: adapter/ is sealed when training is done,
stage.json is written last of all.
"""

from __future__ import annotations

from collections.abc import Mapping

from luthier.console import say
from luthier.data.table import Table
from luthier.recipe import Recipe
from luthier.rundir import RunDir
from luthier.stages.judge import judge
from luthier.stages.prepare import prepare
from luthier.stages.sources import trained_sources
from luthier.stages.tune import tune


def run_stage(
    run: RunDir, name: str, stages: Mapping[str, Recipe], table: Table, *, resume: bool, resume_line: str
) -> None:
    """Run one stage, or go on with it. A finished stage is left alone."""
    stage, recipe = run.stage(name), stages[name]
    if stage.finished:
        say(f"stage {name}: finished before, left as it is")
        return
    say(f"stage {name}")
    stage.path.mkdir(parents=True, exist_ok=True)
    ready = prepare(run, name, recipe, table, trained_sources(stages, name))
    trained = tune(ready, stage, recipe, resume=resume, resume_line=resume_line)
    judge(ready, stage, recipe, trained)
