"""Closes a table's ledger: what became of every row after its stage, with a line for each that is not in the table.

Knows decisions and the layout; refuses to know why they are as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from luthier.data.building.decide import Decisions
from luthier.data.building.layout import LEFT_OUT, Layout
from luthier.data.ledger import Counts, Ledger, event
from luthier.errors import DataError


def outcomes(decisions: Decisions, layout: Layout, ledger: Ledger) -> Iterator[bytes]:
    """Enter every row into the ledger's sums, and give a line for each that was merged or left out after its stage.

    Raises DataError where no row of a source is left.
    """
    stages = layout.stages
    starts = np.cumsum([0, *(stage.rows for stage in stages)])
    parts = [np.array(b.column(0).to_pylist(), dtype="S16") for stage in stages for b in stage.batches(["id"])]
    ids = np.concatenate(parts)
    for number, stage in enumerate(stages):
        counts = ledger.open(stage.source)
        counts.seen += stage.seen
        counts.dropped.update(stage.dropped)
        gone = np.flatnonzero(layout.rank[starts[number] : starts[number + 1]] < 0)
        counts.kept += stage.rows - len(gone)
        groups = stage.pick("group", gone)
        for (row, origin), (_, group) in zip(stage.pick("origin", gone), groups, strict=True):
            index = int(starts[number]) + row
            about = {"source": stage.source, "origin": origin, "id": ids[index].decode()}
            into = int(decisions.into[index])
            if into < 0:
                reason = layout.reason(index)
                step, detail = LEFT_OUT[reason]
                counts.dropped[reason] += 1
                told = f"{detail}: {group}" if reason == "group_in_test" else detail
                yield event({**about, "reason": reason, "detail": told, "step": step})
                continue
            how = {"how": decisions.how_of(index), "similarity": float(decisions.similarity[index])}
            owner = stages[int(np.searchsorted(starts, into, side="right")) - 1]
            held = owner.source if owner.split == "test" and stage.split != "test" else ""
            yield event({**about, "into": ids[into].decode(), **how, **_entered(held, counts)})
        if not counts.kept:
            raise DataError(
                f"source {stage.source}: no row of it is left: {counts.merged:,} merged, {counts.why()}",
                "take the source out, or loosen data.duplicates and data.steps",
            )


def _entered(held: str, counts: Counts) -> dict[str, Any]:
    """Count a row that another stands for: merged, or dropped where that one is held out."""
    if not held:
        counts.merged += 1
        return {}
    counts.dropped["in_test"] += 1
    return {"reason": "in_test", "detail": f"the held-out source {held} has it", "step": "duplicates"}
