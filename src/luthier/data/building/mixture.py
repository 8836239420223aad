"""The order in which a table's training rows come: the plan of `mix.py` over the rows of a table on disk.

Knows a table's columns and its manifest; refuses to know what a row holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from luthier import files
from luthier.data.mix import MixPlan, MixSource, plan_mix
from luthier.recipe_data import Mix

MANIFEST = "manifest.json"
_COLUMNS = ["source", "split", "repeats"]


@dataclass(frozen=True)
class Mixture:
    """How the training rows of a table are mixed. `rows` holds their numbers in the table, source after source."""

    plan: MixPlan
    rows: NDArray[np.int64]

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Numbers of the table's rows in the order of an epoch: a pure function of the seed and `epoch`."""
        return self.rows[self.plan.order(epoch)]


def read_mixture(folder: Path) -> Mixture | None:
    """The mixture of a table; None for a table of graded rows, which has none.

    Raises DataError naming each source that is empty or is asked for more rows than it has.
    """
    settings = files.read_json(folder / MANIFEST)["mixing"]
    return mixture_of(folder, settings) if settings else None


def mixture_of(folder: Path, settings: dict[str, object]) -> Mixture:
    """The mixture of the shards in `folder` by settings of the kind that a manifest keeps under `mixing`."""
    tables = [pq.read_table(path, columns=_COLUMNS) for path in sorted(folder.glob("rows-*.parquet"))]
    source, split, repeats = (np.concatenate([table.column(name).to_numpy() for table in tables]) for name in _COLUMNS)
    shares = settings["sources"]
    assert isinstance(shares, list)
    rows = {share["name"]: np.flatnonzero((source == share["name"]) & (split == "train")) for share in shares}
    found = [
        MixSource(
            name,
            len(rows[name]),
            share["weight"],
            share["cap"],
            share["epochs"],
            repeats[rows[name]] if (repeats[rows[name]] != 1).any() else None,
        )
        for name, share in zip(rows, shares, strict=True)
    ]
    plan = plan_mix(
        found, Mix(float(str(settings["temperature"])), int(str(settings["total"]))), int(str(settings["seed"]))
    )
    return Mixture(plan, np.concatenate(list(rows.values())))
