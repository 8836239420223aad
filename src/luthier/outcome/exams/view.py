"""One exam as pages and cards look at it: its records, read and put in order.

Only what the records say: what a table.json lacks stays None, and a candidate without a score is named among the notes
of the records. This module refuses to know what is drawn or said of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from luthier.outcome import figures
from luthier.outcome.pagerecords import Records
from luthier.rundir import StageDir

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Gap:
    """A paired difference of shares with its interval and p, corrected for the number of comparisons where it is."""

    value: float
    low: float
    high: float
    p: float | None

    @classmethod
    def of(cls, value: Any) -> Gap | None:
        found = figures.score(value)
        if not found or found["low"] is None:
            return None
        p = value.get("p_adjusted", value.get("p"))
        return cls(found["value"], found["low"], found["high"], float(p) if figures.finite(p) else None)


@dataclass
class Candidate:
    """One who sat the exam. `accuracy` is a figure with low and high; `sat` is candidate.json."""

    name: str
    step: int | None
    accuracy: Json
    scores: Json
    band: tuple[float, float] | None
    group: list[str]
    against_base: Gap | None
    against_best: Gap | None
    sat: Json
    predictions: list[Json]

    @property
    def shown(self) -> str:
        return f"step {self.step}" if self.step is not None and self.name == f"step-{self.step:06}" else self.name

    @property
    def right(self) -> int:
        """How many questions were answered rightly."""
        count: int = round(self.accuracy["value"] * self.accuracy["n"])
        return count

    def score(self, key: str) -> Json:
        return figures.score(self.scores.get(key))


@dataclass
class ExamView:
    """An exam and all who sat it, in the order of table.json."""

    name: str
    exam: Json
    table: Json
    candidates: list[Candidate]
    items: dict[str, Json] = field(default_factory=dict)
    kept_step: int | None = None
    """The step that the stage kept, whatever it was chosen by."""

    @property
    def ran(self) -> bool:
        return bool(self.exam or self.table)

    @property
    def count(self) -> int:
        return int(self.table.get("n") or self.exam.get("items") or 0)

    @property
    def alpha(self) -> float:
        return float(self.table.get("alpha") or 0.05)

    @property
    def checkpoints(self) -> list[Candidate]:
        """Those of one training, by step; none where steps of several trainings stand beside one another."""
        found = sorted((one for one in self.candidates if one.step is not None), key=lambda one: one.step or 0)
        return found if len({one.step for one in found}) == len(found) else []

    @property
    def base(self) -> Candidate | None:
        return self.named("base")

    @property
    def best(self) -> Candidate | None:
        return self.named(self.table.get("best"))

    @property
    def chosen(self) -> Candidate | None:
        """None where this exam chooses nobody: it only reports."""
        return self.named(self.table.get("chosen"))

    @property
    def kept(self) -> Candidate | None:
        return next((one for one in self.candidates if one.step is not None and one.step == self.kept_step), None)

    @property
    def picked(self) -> Candidate | None:
        """Whom a reader asks about: the chosen one, else the one that the stage kept, else the best."""
        return self.chosen or self.kept or self.best

    def named(self, name: object) -> Candidate | None:
        return next((one for one in self.candidates if one.name == name), None)

    def share(self, key: str) -> float | None:
        """chance or majority, as a fraction."""
        found = self.table.get(key, self.exam.get(key))
        return float(found) if isinstance(found, (int, float)) and figures.finite(found) else None


def read(records: Records, base: str, name: str, kept_step: int | None = None) -> ExamView:
    """The exam whose folder is `base`, relative to the records' folder; `kept_step`: see ExamView."""
    table = records.document(f"{base}/table.json")
    items = records.lines(f"{base}/items.jsonl")
    view = ExamView(name, records.document(f"{base}/exam.json"), table, [], kept_step=kept_step)
    view.items = {str(item.get("id")): item for item in items}
    for line in table.get("candidates") or []:
        found = _candidate(records, base, line) if isinstance(line, dict) else None
        if found is None:
            records.notes.append(f"{base}/table.json: a candidate without a name or an accuracy is left out")
        else:
            view.candidates.append(found)
    return view


def of_stage(records: Records) -> list[ExamView]:
    """The exams that somebody sat in the stage whose folder the records are of."""
    kept = (records.document("stage.json").get("trained") or {}).get("kept_step")
    views = [read(records, f"exams/{name}", name, kept) for name in StageDir(records.run).exams()]
    return [view for view in views if view.candidates]


def _candidate(records: Records, base: str, line: Json) -> Candidate | None:
    name, scores = line.get("name"), line.get("scores") or {}
    accuracy = figures.score(scores.get("accuracy"))
    if not isinstance(name, str) or not re.fullmatch(r"[^/\\\0.][^/\\\0]*", name):  # it becomes a path
        return None
    if not accuracy or accuracy["low"] is None or not accuracy["n"]:
        return None
    band = line.get("band") or []
    whole = len(band) == 2 and all(map(figures.finite, band))
    return Candidate(
        name=name,
        step=line.get("step"),
        accuracy=accuracy,
        scores=scores,
        band=(band[0], band[1]) if whole else None,
        group=[str(letter) for letter in line.get("group") or []],
        against_base=Gap.of(line.get("against_base")),
        against_best=Gap.of(line.get("against_best")),
        sat=records.document(f"{base}/{name}/candidate.json"),
        predictions=records.lines(f"{base}/{name}/predictions.jsonl"),
    )
