"""A source's rows on disk: how they are read back, a batch at a time or a few rows out of many.

Knows the files of a stage; refuses to know sources and steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from luthier.data.building.rows import STAGE_SCHEMA

ROWS, EVENTS, MEDIA = "rows.arrow", "events.jsonl", "media"


@dataclass(frozen=True)
class Stage:
    """A source's rows on disk. `about` is what the table's manifest says of the source."""

    key: str
    """Names what it was made from, the media that were read from beside a table included."""
    folder: Path
    source: str
    split: str
    about: dict[str, Any]
    reused: bool = False

    @property
    def rows(self) -> int:
        return int(self.about["rows"])

    @property
    def seen(self) -> int:
        return int(self.about["in"])

    @property
    def dropped(self) -> Counter[str]:
        return Counter(self.about["dropped"])

    def batches(self, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows in their order, a batch at a time."""
        chosen = [STAGE_SCHEMA.get_field_index(name) for name in columns or STAGE_SCHEMA.names]
        options = pa.ipc.IpcReadOptions(included_fields=chosen)
        with pa.OSFile(str(self.folder / ROWS)) as stream, pa.ipc.open_file(stream, options=options) as file:
            for number in range(file.num_record_batches):
                yield file.get_batch(number)

    def pick(self, column: str, rows: NDArray[np.int64]) -> Iterator[tuple[int, Any]]:
        """(row, value) of a column for some ascending rows; only the batches that hold them are read."""
        if not len(rows):
            return
        options = pa.ipc.IpcReadOptions(included_fields=[STAGE_SCHEMA.get_field_index(column)])
        bounds = np.cumsum([0, *self.about["batches"]])
        with pa.OSFile(str(self.folder / ROWS)) as stream, pa.ipc.open_file(stream, options=options) as file:
            for number in np.unique(np.searchsorted(bounds, rows, side="right") - 1).tolist():
                own = rows[(rows >= bounds[number]) & (rows < bounds[number + 1])]
                values = file.get_batch(number).column(0).take(pa.array(own - bounds[number])).to_pylist()
                yield from zip(own.tolist(), values, strict=True)
