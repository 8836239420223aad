"""One stage of a run as a comparison reads it: recipe, manifests, records. Nothing is written, no model is loaded.

A record that is missing is empty; one that cannot be read is refused by name, for half a comparison misleads.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from luthier import files
from luthier.errors import DataError, RequestError
from luthier.recipe import Recipe
from luthier.recipefile import read_tree, resolve, stage_recipes
from luthier.rundir import RunDir, StageDir

Json = dict[str, Any]


@dataclass(frozen=True)
class RunStage:
    """A finished stage of a run. `label` tells it from the others of a comparison."""

    label: str
    run: RunDir
    stage: StageDir
    recipe: Recipe
    """The stage's own, every default filled in."""
    trained_on: tuple[str, ...]
    """Sources that shaped the adapter: the stage's, and those of the stages that it starts from."""

    @property
    def kind(self) -> str:
        """verdict or chat (an exam is trained as chats are)."""
        return "chat" if self.recipe.task.of_text else "verdict"

    @cached_property
    def manifest(self) -> Json:
        return self.run.read_manifest()

    @cached_property
    def about(self) -> Json:
        """stage.json."""
        return _document(self.stage.record)

    @cached_property
    def scores(self) -> Json:
        return _document(self.stage.scores)

    @cached_property
    def verdicts(self) -> list[Json]:
        """Held-out answers and the probability of a pass that the model gave each."""
        return [line for line in _lines(self.stage.predictions) if "p_pass" in line]

    @cached_property
    def described(self) -> list[Json]:
        """Held-out pictures: id, group, truth, read, and the scores of each answer, as `field.score`."""
        return [line for line in _lines(self.stage.predictions) if "truth" in line and "scores" in line]

    @cached_property
    def held_out(self) -> list[Json]:
        """Held-out chats: id, group, nll (nats), target_bytes."""
        path = self.stage.held_out if self.stage.held_out.is_file() else self.stage.predictions
        return [line for line in _lines(path) if "nll" in line]

    @cached_property
    def metrics(self) -> list[Json]:
        return _lines(self.stage.metrics)

    @cached_property
    def table(self) -> Json:
        """The manifest of the run's table."""
        return _document(self.run.data / "manifest.json")

    @cached_property
    def adapter(self) -> Json:
        """What the adapter says of its base."""
        return _document(self.stage.adapter / "adapter_base.json") or _document(self.stage.adapter / "verdict.json")

    @property
    def trained(self) -> Json:
        """What the training says of itself: steps, seconds, tokens, the step that was kept."""
        return self.about.get("trained") or self.about

    @property
    def adapter_digest(self) -> str:
        """sha256 of the final adapter's weights, as stage.json has it."""
        return str(self.about.get("adapter_sha256", ""))

    def rows(self, columns: Sequence[str], where: Sequence[tuple[str, str, object]]) -> Iterator[Json]:
        """Some columns of the run's table, of the rows where all of (column, operator, value) hold, in order."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        for path in sorted(self.run.data.glob("rows-*.parquet")):
            try:
                yield from pq.read_table(path, columns=list(columns), filters=list(where)).to_pylist()
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{path}: cannot be read: {str(error).splitlines()[0]}", "run it again") from error

    @cached_property
    def training_rows(self) -> str:
        """sha256 of the rows that the stage learned from, with what each weighs, in whatever order; "" without them."""
        where = [("split", "==", "train"), ("source", "in", self.recipe.data.train)]
        rows = self.rows(["id", "weight", "repeats"], where)
        found = sorted(f"{row['id']} {row['weight']} {row['repeats']}" for row in rows)
        return files.sha256_bytes("\n".join(found).encode()) if found else ""

    def texts(self, ids: set[str]) -> dict[str, str]:
        """Id -> what was said in the row, turn after turn, a line each; empty without the table."""
        rows = self.rows(["id", "messages"], [("id", "in", ids)]) if ids else ()
        return {row["id"]: spoken(json.loads(row["messages"])) for row in rows}


def spoken(messages: Sequence[Json]) -> str:
    """Turns as `role: text`; sound and pictures as their kind in brackets."""
    lines = []
    for message in messages:
        parts = [part.get("text") or f"[{part.get('type')}]" for part in message.get("content", [])]
        lines.append(f"{message.get('role')}: {' '.join(parts)}")
    return "\n".join(lines)


def open_runs(paths: Sequence[Path], stage: str = "") -> list[RunStage]:
    """Each run's stage of that name; without one the last that is finished.

    Raises RequestError for fewer than two runs, the same run twice, a stage that is not finished, and for runs of
    different tasks, which have no item and no unit in common.
    """
    places = [path.resolve() for path in paths]
    twice = [str(path) for at, path in enumerate(paths) if places[at] in places[:at]]
    if len(paths) < 2 or twice:
        what = f"{twice[0]} is named twice" if twice else f"{len(paths)} run is nothing to compare"
        raise RequestError(f"compare: {what}", "name two or more runs")
    found = [_open(RunDir.open(path), label, stage) for path, label in zip(paths, _labels(places), strict=True)]
    kinds = {one.kind for one in found}
    if len(kinds) > 1:
        said = ", ".join(f"{one.label} ({one.recipe.task.kind})" for one in found)
        raise RequestError(
            f"compare: the runs are of different tasks: {said}; they share no item and no unit",
            "compare runs of one task",
        )
    return found


def _open(run: RunDir, label: str, wanted: str) -> RunStage:
    problems: list[str] = []
    stages = stage_recipes(resolve(read_tree(run.recipe), problems))
    finished = [name for name in stages if run.stage(name).finished]
    name = wanted or (finished[-1] if finished else "")
    if name not in finished:
        what = f"stage {name} is not finished" if name else "no stage of it is finished"
        raise RequestError(
            f"{run.path}: {what}" + (f" (finished: {', '.join(finished)})" if finished else ""),
            "let the run finish, or name another --stage",
        )
    return RunStage(label, run, run.stage(name), stages[name], _trained_on(stages, name))


def _trained_on(stages: Mapping[str, Recipe], name: str) -> tuple[str, ...]:
    found: dict[str, None] = {}
    while name:
        found |= dict.fromkeys(stages[name].data.train)
        name = stages[name].start_from
    return tuple(found)


def _labels(places: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    for depth in range(1, max(len(place.parts) for place in places) + 1):
        labels = ["/".join(place.parts[-depth:]).lstrip("/") for place in places]
        if len(set(labels)) == len(labels):
            break
    return labels


def _document(path: Path) -> Json:
    found = _read(path, files.read_json) or {}
    if not isinstance(found, dict):
        raise DataError(f"{path}: is a {type(found).__name__}, not an object", "take the run from its origin again")
    return found


def _lines(path: Path) -> list[Json]:
    return [line for line in _read(path, files.read_jsonl) or [] if isinstance(line, dict)]


def _read(path: Path, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(path) if path.is_file() else None
    except ValueError as error:
        raise DataError(f"{path}: cannot be read: {error}", "take the run from its origin again") from error
