"""The runs of this machine as a page lists them: found by their run.json, told from their records, never changed.

Knows folders and records; refuses to know pages, models and visitors.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from luthier.engines.finding import names_apart, run_recipes
from luthier.errors import LuthierError
from luthier.files import read_json
from luthier.outcome import figures
from luthier.rundir import RunDir, StageDir

_DEPTH, _MOST_RUNS = 4, 500
_ENDS = {"finished": "finished", "failed": "failed", "new": "not begun"}


@dataclass(frozen=True)
class ListedRun:
    """A run as it is now. `key` is what a page calls it by: it says nothing of where the run lies."""

    key: str
    run: RunDir
    name: str
    """The folder's, with as much of what is above it as tells it from the others: as models are called."""
    kind: str
    """The recipe's task.kind."""
    stages: tuple[str, ...]
    finished: tuple[str, ...]
    """The stages that are."""
    status: str
    """running, finished, interrupted, failed or not begun; unreadable for a run whose records are."""
    created: str
    headline: str
    """The scores of the last stage that has any; of a run that is unreadable, why."""

    @property
    def at_work(self) -> StageDir | None:
        """The stage whose curves are drawn: the first that is not finished and has begun, else the last that is."""
        begun = [name for name in self.stages if self.run.stage(name).metrics.is_file()]
        open_ones = [name for name in begun if name not in self.finished]
        name = open_ones[0] if open_ones else begun[-1] if begun else ""
        return self.run.stage(name) if name else None


def find_runs(given: Sequence[Path], watched: Path | None) -> list[ListedRun]:
    """The runs given and those below the watched folder, the newest first."""
    folders = dict.fromkeys(path.resolve() for path in given)
    if watched is not None:
        folders |= dict.fromkeys(_below(watched.resolve()))
    shown = list(folders)[:_MOST_RUNS]
    found = [listed(folder, name) for folder, name in zip(shown, names_apart(shown), strict=True)]
    return sorted(found, key=lambda one: (one.created, one.name), reverse=True)


def listed(folder: Path, name: str) -> ListedRun:
    """One run, called `name`, as its records have it now."""
    run, key = RunDir(folder), sha256(os.fsencode(folder)).hexdigest()[:12]
    try:
        manifest, (kind, stages) = run.read_manifest(), _told_by_recipe(run)
        done = tuple(name for name in stages if run.stage(name).finished)
        status = "running" if run.held else _ENDS.get(str(manifest.get("status")), "interrupted")
        created, headline = str(manifest.get("created", "")), _headline(run, stages)
        return ListedRun(key, run, name, kind, stages, done, status, created, headline)
    except (OSError, ValueError, AttributeError, LuthierError) as error:
        what = error.message if isinstance(error, LuthierError) else type(error).__name__
        return ListedRun(key, run, name, "", (), (), "unreadable", "", _short(what))


def _below(folder: Path) -> Iterator[Path]:
    """Run folders at most some floors down; nothing is looked for inside a run, and no link is followed."""
    for place, inner, names in os.walk(folder):
        here = Path(place)
        if "run.json" in names:
            yield here
        if "run.json" in names or len(here.relative_to(folder).parts) >= _DEPTH:
            inner.clear()
        inner[:] = sorted(name for name in inner if not name.startswith("."))


def _told_by_recipe(run: RunDir) -> tuple[str, tuple[str, ...]]:
    """The kind of work, and the stages in order."""
    return _read_recipe(run.recipe, run.recipe.stat().st_mtime_ns)


@lru_cache(maxsize=1024)
def _read_recipe(recipe: Path, changed: int) -> tuple[str, tuple[str, ...]]:
    """`changed` stands for the recipe's bytes: they take some milliseconds to read, and do not change."""
    stages = run_recipes(RunDir(recipe.parent))
    return next(iter(stages.values())).task.kind, tuple(stages)


def _headline(run: RunDir, stages: Sequence[str]) -> str:
    for name in reversed(stages):
        path = run.stage(name).scores
        told = _told_scores(read_json(path)) if path.is_file() else ""
        if told:
            return f"{name}: {told}" if len(stages) > 1 else told
    return ""


def _short(what: str) -> str:
    """The first line of a message, without the folder that it may name."""
    return what.splitlines()[0].rsplit("/", 1)[-1][:120]


def _told_scores(scores: dict[str, Any]) -> str:
    """The scores that people ask for first, with their intervals."""
    parts = []
    for key, words in (("auroc", "AUROC"), ("accuracy", "accuracy"), ("bits_per_byte", "bits per byte")):
        score = figures.score(scores.get(key))
        if score:
            parts.append(f"{words} {score['value']:.3f}{figures.interval(score)}")
    before = figures.score(scores.get("before.bits_per_byte"))
    if before and parts:
        parts.append(f"before {before['value']:.3f}")
    return ", ".join(parts[:2])
