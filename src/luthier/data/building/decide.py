"""Decides over all stages which rows stand for which: exact, near, semantic, then media; the first row stays.

Knows stages and the order of the looks; refuses to know how a look works (`dedupe`, `semantic`, `likeness`). Held-out
rows come first, so a training row that a held-out source also has is the one that gives way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from luthier import files
from luthier.data import dedupe
from luthier.data.building.allrows import Indices, Rows
from luthier.data.building.looks import exact, looks_of
from luthier.data.building.request import TableRequest
from luthier.data.building.stage import Stage
from luthier.data.building.stagecache import StageCache, stage_key

HOWS = ("", "exact", "near", "semantic", "image", "audio")
_FILE, _SUMMARY = "decisions.arrow", "summary.json"
SHOWN, _CUT = 20, 400
"""Pairs of siblings that the manifest shows."""


@dataclass
class Decisions:
    """For each row of the stages, one stage after another: the row that stands for it, or -1 where it stays."""

    into: Indices
    how: NDArray[np.uint8]
    similarity: NDArray[np.float64]
    left_out: NDArray[np.bool_]
    """Training rows whose group a held-out source has."""
    summary: dict[str, Any] = field(default_factory=dict)
    """Merges by kind, sibling pairs (counted, some shown), notes for a person."""

    @classmethod
    def none(cls, rows: int) -> Decisions:
        """Every row stays."""
        none = np.zeros(rows, dtype=bool)
        return cls(np.full(rows, -1, dtype=np.int64), np.zeros(rows, dtype=np.uint8), np.zeros(rows), none)

    def enter(self, index: int, into: int, merge: dedupe.Merge) -> None:
        """Let row `into` stand for row `index`."""
        self.into[index], self.how[index], self.similarity[index] = into, HOWS.index(merge.how), merge.similarity

    def how_of(self, index: int) -> str:
        return HOWS[int(self.how[index])]


def decide(stages: Sequence[Stage], request: TableRequest, cache: StageCache) -> Decisions:
    """Look for duplicates as `request.duplicates` says; an earlier decision over the same stages is used again."""
    key = stage_key(
        {
            "decisions": [[stage.key, stage.split] for stage in stages],
            "duplicates": asdict(request.duplicates),
            "per_source": request.per_source,
            "graded": request.graded,
        }
    )
    folder = cache.find(key)
    if folder is None:
        found = _look(stages, request)
        with cache.make(key, {}) as place:
            _write(found, place)
        return found
    return _read(folder)


def _look(stages: Sequence[Stage], request: TableRequest) -> Decisions:
    rows = Rows(stages)
    decisions = Decisions.none(rows.total)
    held_first = sorted(range(len(stages)), key=lambda number: stages[number].split != "test")
    if not request.graded:
        _keep_apart(rows, held_first, decisions, request)
    scopes = [[number] for number in held_first] if request.per_source else [held_first]
    shown: list[list[str]] = []
    notes: list[str] = []
    counted, conflicts = 0, 0
    for scope in scopes:
        order = np.concatenate([rows.span(number) for number in scope])
        for look in looks_of(request.duplicates):
            stays = (decisions.into[order] < 0) & ~decisions.left_out[order]
            found = look(rows, scope, order, stays, request)
            _take(found, order, decisions)
            conflicts += found.refused
            counted += found.sibling_count
            notes += found.notes
            for pair in found.siblings[: SHOWN - len(shown)]:
                shown.append([text[:_CUT] for text in rows.texts_of(order[list(pair)])])
    if counted:
        notes.append(f"{counted:,} pairs of rows are equal but for names and numbers: not merged")
    if conflicts:
        notes.append(
            f"{conflicts:,} pairs of rows are alike as a whole, but differ in a turn, a "
            "tool call or the target: not merged"
        )
    merged = Counter(HOWS[code] for code in decisions.how[decisions.into >= 0].tolist())
    decisions.summary = {
        "merged": dict(merged),
        "siblings": counted,
        "sibling_pairs": shown,
        "conflicts": conflicts,
        "notes": notes,
    }
    return decisions


def _keep_apart(rows: Rows, held_first: Sequence[int], decisions: Decisions, request: TableRequest) -> None:
    """Training rows that a held-out source has too go to it; those of which it has the group are left out.

    This comes before all other looks, so that no row is merged into one that is left out, whatever the scope.
    """
    held = [number for number in held_first if rows.stages[number].split == "test"]
    if not held or len(held) == len(rows.stages):
        return
    order = np.concatenate([rows.span(number) for number in held_first])
    tested = int(sum(rows.stages[number].rows for number in held))
    for merge in exact(rows, held_first, order, np.ones(len(order), dtype=bool), request).merges:
        if merge.into < tested <= merge.index:
            decisions.enter(int(order[merge.index]), int(order[merge.into]), merge)
    groups = {group for number in held for group in rows.column("group", [number])}
    for number in held_first[len(held) :]:
        shared = [group in groups for group in rows.column("group", [number])]
        decisions.left_out[rows.span(number)] = shared
    decisions.left_out &= decisions.into < 0


def _take(found: dedupe.Found, order: Indices, decisions: Decisions) -> None:
    """Enter merges, in numbers of a scope, into the decisions."""
    for merge in found.merges:
        decisions.enter(int(order[merge.index]), int(order[merge.into]), merge)
    # What was merged into a row that is now merged itself goes where that row went.
    for index in order[decisions.into[order] >= 0].tolist():
        while decisions.into[decisions.into[index]] >= 0:
            decisions.into[index] = decisions.into[decisions.into[index]]


def _write(decisions: Decisions, place: Path) -> None:
    columns = {
        "into": pa.array(decisions.into),
        "how": pa.array(decisions.how),
        "similarity": pa.array(decisions.similarity),
        "left_out": pa.array(decisions.left_out),
    }
    batch = pa.record_batch(columns)
    with pa.OSFile(str(place / _FILE), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as file:
        file.write_batch(batch)
    (place / _SUMMARY).write_bytes(orjson.dumps(decisions.summary))


def _read(folder: Path) -> Decisions:
    with pa.OSFile(str(folder / _FILE)) as stream, pa.ipc.open_file(stream) as file:
        found = file.read_all()
    names = ("into", "how", "similarity", "left_out")
    into, how, similarity, left_out = (found.column(name).to_numpy() for name in names)
    return Decisions(into, how, similarity, left_out, files.read_json(folder / _SUMMARY))
