"""Stage follows stage: each is trained, judged and recorded, or left alone when it is finished.

A kill at any point loses at most the work since the last checkpoint: adapter/ is sealed when training is done,
stage.json is written last of all.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from luthier.console import say
from luthier.data.table import read_table
from luthier.errors import Interrupted
from luthier.files import read_json, read_jsonl
from luthier.outcome.describepage import sample_table
from luthier.recipe import Recipe
from luthier.recipefile import to_tree
from luthier.rundir import RunDir, StageOptions
from luthier.runtime.tracking import Trackers
from luthier.stages.chat_judge import judge_chat, score_before
from luthier.stages.chat_prepare import prepare_chat
from luthier.stages.chat_samples import ask_before
from luthier.stages.chat_store import stock_features
from luthier.stages.describe_judge import Describing
from luthier.stages.fit import Fit, fit, prove_resume, stage_checkpoints
from luthier.stages.judge import judge
from luthier.stages.prepare import prepare
from luthier.stages.sources import trained_sources
from luthier.stages.tune import verdict_fit


@dataclass
class Work:
    """One prepared stage: what is trained, what is done before and after."""

    fit: Fit
    before: Callable[[], None]
    judge: Callable[[dict[str, Any]], None]


def run_stage(run: RunDir, name: str, stages: Mapping[str, Recipe], options: StageOptions) -> str:
    """Run one stage, or go on with it; a finished stage is left alone. Returns the digest of its base's weights."""
    stage, recipe = run.stage(name), stages[name]
    prepare_work = _chat if recipe.task.of_text else _verdict
    if options.verify:
        _prove(run, name, stages, prepare_work)
    if stage.finished:
        say(f"stage {name}: finished before, left as it is")
        return str(read_json(stage.record)["base_sha256"])
    say(f"stage {name}")
    stage.path.mkdir(parents=True, exist_ok=True)
    work = prepare_work(run, name, stages)
    work.before()
    with _mirror(run, name, recipe, options.resume) as trackers:
        if trackers is not None:
            work.fit.mirror = lambda record: trackers.log(record, record.step)
        trained = fit(work.fit, stage, recipe, resume=options.resume, resume_line=options.resume_line)
        work.judge(trained)
        if trackers is not None and recipe.task.kind == "describe":
            columns, rows = sample_table(run.path, read_jsonl(stage.predictions), recipe.seed)
            trackers.table("predictions", columns, rows)
    return str(read_json(stage.record)["base_sha256"])


def _prove(run: RunDir, name: str, stages: Mapping[str, Recipe], prepare_work: Callable[..., Work]) -> None:
    """Prove a stage's checkpoints, where it has any; what that took of memory is given back."""
    if stage_checkpoints(run.stage(name), stages[name]).newest() is None:
        say(f"stage {name}: not proved, as it has no checkpoint yet")
        return
    prove_resume(prepare_work(run, name, stages).fit, run.stage(name), stages[name])
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _verdict(run: RunDir, name: str, stages: Mapping[str, Recipe]) -> Work:
    recipe, table = stages[name], read_table(run.data)
    ready = prepare(run, name, recipe, table, trained_sources(stages, name))
    return Work(verdict_fit(ready, recipe), lambda: None, partial(judge, ready, run.stage(name), recipe))


def _chat(run: RunDir, name: str, stages: Mapping[str, Recipe]) -> Work:
    recipe, stage = stages[name], run.stage(name)
    ready = prepare_chat(run, name, recipe)
    stock_features(ready, run, name, recipe.train)
    describing = Describing.of(ready, run, recipe) if recipe.task.kind == "describe" else None

    def before() -> None:
        score_before(ready, stage)
        if describing is not None:
            describing.before(stage)
        ask_before(ready, run, stage, recipe)
        if ready.exams is not None:
            ready.exams.before()

    return Work(ready.fit(), before, partial(judge_chat, ready, run, stage, recipe, describing))


@contextmanager
def _mirror(run: RunDir, name: str, recipe: Recipe, resume: bool) -> Iterator[Trackers | None]:
    """What is told every line of metrics, while a stage trains and is judged."""
    if not recipe.track.trackers:
        yield None
        return
    manifest, stage = run.read_manifest(), run.stage(name)
    about = {"recipe": to_tree(recipe), "versions": manifest["versions"], "hashes": manifest["hashes"]}
    kept = (stage_checkpoints(stage, recipe).newest() or 0) if resume else 0
    trackers = Trackers.open(recipe.track, f"{recipe.name or run.path.name}-{name}", stage.path, about, kept)
    status = "failed"
    try:
        yield trackers
        status = "finished"
    except (Interrupted, KeyboardInterrupt):
        status = "interrupted"
        raise
    finally:
        trackers.close(status)
