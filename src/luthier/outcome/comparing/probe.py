"""The one set of rows on which runs of different data are held against one another: nobody was trained on any of it.

By default the rows that the runs held out. Rows that a run was trained on leave, and all rows of their groups. Which
rows these are is known from records; who scores them is not this module's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from luthier.errors import DataError
from luthier.outcome.comparing.runrecords import Json, RunStage

MOST = 1000
"""Rows that models are asked to score where nobody named a probe; ids are hashes, so the first are drawn evenly."""


@dataclass(frozen=True)
class Trained:
    """What a run learned from: ids and groups of rows."""

    ids: frozenset[str]
    groups: frozenset[str]

    def knows(self, name: str, group: str) -> bool:
        return name in self.ids or (bool(group) and group in self.groups)


@dataclass
class Probe:
    """Rows of a probe, by where they are from, and what was left out of it."""

    what: str
    ids: list[str]
    recorded: bool = False
    """Every run has scored these rows already; no model need be loaded."""
    trained: dict[str, int] = field(default_factory=dict)
    """By run: rows that left because this run was trained on them or on their group."""
    beyond: int = 0
    """Rows beyond the most that are scored."""

    def to_json(self) -> Json:
        return {"what": self.what, "rows": len(self.ids), "trained": self.trained, "beyond": self.beyond}


def trained_rows(run: RunStage) -> Trained:
    """Rows of the training split of every source that shaped the run's adapter. DataError where its table is gone."""
    if not any(run.run.data.glob("rows-*.parquet")):
        raise DataError(
            f"{run.run.data}: its table is not there, and nothing else says which rows the run was trained on",
            "take the folder from its origin again; runs that held out the same rows are compared without",
        )
    rows = list(run.rows(["id", "group"], [("split", "==", "train"), ("source", "in", run.trained_on)]))
    return Trained(frozenset(row["id"] for row in rows), frozenset(row["group"] for row in rows if row["group"]))


def default_probe(runs: Sequence[RunStage]) -> Probe:
    """The rows that any run held out and none was trained on; recorded where every run scored all of them."""
    held_out = [{str(line["id"]): str(line.get("group", "")) for line in run.held_out} for run in runs]
    if all(own.keys() == held_out[0].keys() for own in held_out):
        return Probe("rows that all runs held out", list(held_out[0]), recorded=True)
    ids, left_out = untrained(runs, {name: group for own in held_out for name, group in own.items()}.items())
    if all(name in own for name in ids for own in held_out):
        return Probe("rows that all runs held out", ids, True, left_out)
    chosen = sorted(ids)[:MOST]
    return Probe("rows that the runs held out", chosen, False, left_out, len(ids) - len(chosen))


def untrained(runs: Sequence[RunStage], rows: Iterable[tuple[str, str]]) -> tuple[list[str], dict[str, int]]:
    """Of (id, group): the ids that no run learned from, and how many left on account of each run."""
    trained, kept = {run.label: trained_rows(run) for run in runs}, list[str]()
    left_out = dict.fromkeys(trained, 0)
    for name, group in rows:
        knowing = [label for label, known in trained.items() if known.knows(name, group)]
        for label in knowing:
            left_out[label] += 1
        if not knowing:
            kept.append(name)
    return kept, {label: count for label, count in left_out.items() if count}


def recorded_losses(probe: Probe, runs: Sequence[RunStage]) -> list[list[Json]]:
    """The lines of each run's own held-out rows that are in the probe."""
    wanted = set(probe.ids)
    return [[line for line in run.held_out if str(line["id"]) in wanted] for run in runs]
