"""Answers what became of a record: a row's way from its source to the table, or to where it was left out.

Knows a table's manifest, ledger and shards; refuses to know sources as they are now: what is told is what happened.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from luthier.data.building.build import LEDGER
from luthier.data.building.rows import TableRow, from_record
from luthier.data.ledger import read_events
from luthier.data.table import iter_batches, read_manifest
from luthier.errors import DataError

SHOWN = 20


@dataclass
class Way:
    """What happened to one record. `outcome` is kept, merged or dropped."""

    id: str
    source: str
    origin: str
    outcome: str
    steps: list[tuple[str, str]] = field(default_factory=list)
    """(step, what it did) in order; a step that the record never reached is not there."""
    reason: str = ""
    into: str = ""
    how: str = ""
    members: list[dict[str, Any]] = field(default_factory=list)
    """Records that were merged into this one."""
    row: TableRow | None = None

    def lines(self) -> list[str]:
        """The way in words."""
        where = f"{self.source}: {self.origin}"
        found = [f"{self.id or 'a record without an id'}  {where}  {self.outcome}"]
        found += [f"  {step}: {what}" for step, what in self.steps]
        if self.reason:
            found.append(f"  dropped: {self.reason}")
        if self.into:
            found.append(f"  merged into {self.into} ({self.how})")
        found += [
            f"  it stands for {member['source']}: {member['origin']} ({member['how']}, {member['similarity']:.2f})"
            for member in self.members[:SHOWN]
        ]
        if len(self.members) > SHOWN:
            found.append(f"  and for {len(self.members) - SHOWN} more")
        if self.row:
            row = self.row.row
            found.append(f"  split {row.split}, group {row.group}, weight {self.row.weight:g}")
        return found

    def to_json(self) -> dict[str, Any]:
        found = {name: getattr(self, name) for name in ("id", "source", "origin", "outcome", "reason", "into", "how")}
        return {**found, "steps": [list(step) for step in self.steps], "merged_into_it": self.members}


def why(folder: Path, name: str) -> list[Way]:
    """The ways of all records with this id, or of this origin (`FILE#N`, or `SOURCE:FILE#N`).

    Raises DataError where the table and its ledger know nothing of it.
    """
    manifest = read_manifest(folder)
    steps = [step["name"] for step in manifest.get("steps", [])]
    kept = list(find_rows(folder, name))
    about: dict[str, list[dict[str, Any]]] = {"changed": [], "reason": [], "into": []}
    members: dict[str, list[dict[str, Any]]] = {}
    ids = {row.row.id for row in kept}
    for line in read_events(folder / LEDGER):
        if "in" in line:
            continue
        kind = "into" if "into" in line and "reason" not in line else "reason" if "reason" in line else "changed"
        if _named(line, name) or (kind == "changed" and line["id"] in ids):
            about[kind].append(line)
        if kind == "into" and line["into"] in ids:
            members.setdefault(line["into"], []).append(line)
    ways = [_kept(row, steps, about["changed"], members.get(row.row.id, [])) for row in kept]
    ways += [_left_out(line, steps, about["changed"]) for line in (*about["into"], *about["reason"])]
    if not ways:
        raise DataError(
            f"{folder}: neither the rows nor the ledger know {name!r}",
            "give a row's id, or FILE#N as the ledger writes it (luthier data show lists ids)",
        )
    return ways


def find_rows(folder: Path, name: str) -> Iterator[TableRow]:
    """Rows of a table with this id or origin."""
    source, colon, origin = name.partition(":")
    for batch in iter_batches(folder):
        mask = pc.or_(pc.equal(batch["id"], name), _origin_is(batch["origin"], name))
        if colon:
            mask = pc.or_(mask, pc.and_(pc.equal(batch["source"], source), _origin_is(batch["origin"], origin)))
        for record in batch.filter(mask).to_pylist():
            yield from_record(record)


def _origin_is(column: pa.Array, name: str) -> pa.Array:
    """An origin may end in the record's own id, which need not be given."""
    return pc.or_(pc.equal(column, name), pc.starts_with(column, f"{name} "))


def _named(line: dict[str, Any], name: str) -> bool:
    origin = line.get("origin", "")
    names = (origin, f"{line.get('source')}:{origin}")
    return line.get("id") == name or any(item == name or item.startswith(f"{name} ") for item in names)


def _steps(steps: list[str], changed: list[dict[str, Any]], source: str, origin: str) -> list[tuple[str, str]]:
    """Each step with what it did; a step that changed nothing is listed as such."""
    did = {
        change["step"]: change["detail"]
        for line in changed
        if (line["source"], line["origin"]) == (source, origin)
        for change in line["changed"]
    }
    return [(step, did.get(step, "passed unchanged")) for step in steps]


def _kept(row: TableRow, steps: list[str], changed: list[dict[str, Any]], members: list[dict[str, Any]]) -> Way:
    where = row.row.provenance
    did = _steps(steps, changed, where.source, where.origin)
    return Way(row.row.id, where.source, where.origin, "kept", did, members=members, row=row)


def _left_out(line: dict[str, Any], steps: list[str], changed: list[dict[str, Any]]) -> Way:
    source, origin, step = line["source"], line["origin"], line.get("step", "")
    did = _steps(steps, [*changed, line] if "changed" in line else changed, source, origin)
    if "reason" not in line:
        how = f"{line['how']}, similarity {line['similarity']:.2f}"
        return Way(line.get("id", ""), source, origin, "merged", did, into=line["into"], how=how)
    reached = [item for item, _ in did].index(step) if step in steps else (len(did) if step else 0)
    reason = f"{line['reason']}: {line['detail']}" if line["detail"] else line["reason"]
    if step:
        reason += f" (at {step})"
    return Way(line.get("id", ""), source, origin, "dropped", did[:reached], reason=reason)
