"""What answers with a similar probability got from people: the nearest held-out answers of a stage.

Similar means near in the stage's calibrated probability and nothing else: it shows how raters judged those answers of
which the model was as sure as of this one. Reads a run's records; refuses to know models and sound.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from luthier.engines.base import ServedModel
from luthier.engines.finding import run_recipes
from luthier.errors import DataError
from luthier.files import read_jsonl
from luthier.rundir import RunDir
from luthier.schema import Message, Target

_MOST_QUESTIONS = 200


@dataclass(frozen=True)
class Similar:
    """One held-out answer: what people gave it, and what the model said of it."""

    id: str
    grade: float
    passed: bool
    p_pass: float
    """Calibrated, where the stage was."""
    question: str
    raters: tuple[float, ...] = ()
    """What each rater gave, those kept from training included; empty where the run has no table any more."""


@dataclass(frozen=True)
class _Asked:
    """A row of the run's table: its question, its raters' grades."""

    question: str
    raters: tuple[float, ...]


def nearest(model: ServedModel, p_calibrated: float, count: int = 5) -> list[Similar]:
    """The `count` held-out answers of the model's stage whose calibrated p_pass lies nearest, the nearest first.

    Empty for a checkpoint, which has no predictions on record, and where a stage has none. Raises DataError for records
    that cannot be read.
    """
    if model.run is None or model.step is not None:
        return []
    predictions = RunDir(model.run).stage(model.stage).predictions
    try:
        rows = read_jsonl(predictions) if predictions.is_file() else []
    except ValueError as error:
        raise DataError(f"{predictions.name}: cannot be read: {error}", "take the run from its origin again") from error
    judged = [(abs(_p(row) - p_calibrated), row) for row in rows if row.get("grade") is not None]
    judged.sort(key=lambda pair: (pair[0], str(pair[1]["id"])))
    known = _table(model.run, model.stage) if judged else {}
    nothing = _Asked("", ())
    return [
        Similar(id, float(row["grade"]), bool(row["pass"]), _p(row), asked.question, asked.raters)
        for row in (row for _, row in judged[:count])
        for id, asked in [(str(row["id"]), known.get(str(row["id"]), nothing))]
    ]


def questions_of(model: ServedModel) -> list[str]:
    """The questions that the model's stage was trained and tested on, the most frequent first; none without a table."""
    if model.run is None:
        return []
    counts = Counter(asked.question for asked in _table(model.run, model.stage).values() if asked.question)
    return [question for question, _ in counts.most_common(_MOST_QUESTIONS)]


@lru_cache(maxsize=4)
def _table(run: Path, stage: str) -> dict[str, _Asked]:
    """The graded rows of a stage by id. A finished stage's table does not change."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = sorted(RunDir(run).data.glob("rows-*.parquet"))
    if not paths:
        return {}
    recipe = run_recipes(RunDir(run))[stage]
    wanted = [("source", "in", [*recipe.data.train, *recipe.data.test])]
    found: dict[str, _Asked] = {}
    for path in paths:
        try:
            rows = pq.read_table(path, columns=["id", "messages", "target"], filters=wanted).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path.name}: cannot be read: {str(error).splitlines()[0]}", "run it again") from error
        found |= {row["id"]: _asked(row) for row in rows}
    return found


def _asked(row: dict[str, Any]) -> _Asked:
    turns = [Message.from_json(one) for one in json.loads(row["messages"])]
    target = Target.from_json(json.loads(row["target"])) if row["target"] else Target()
    return _Asked(turns[0].text if turns else "", (*target.raters, *target.held_back))


def _p(row: dict[str, Any]) -> float:
    """Stages of before calibration was recorded have p_pass alone."""
    found = row.get("p_pass_calibrated")
    return float(row["p_pass"] if found is None else found)
