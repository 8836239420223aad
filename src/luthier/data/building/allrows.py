"""The rows of all stages as one numbered sequence, read again wherever they are asked for.

Knows stages; refuses to know what rows are compared for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from luthier.data.building.rows import texts
from luthier.data.building.stage import MEDIA, Stage

Indices = NDArray[np.int64]


class Rows:
    """The rows of all stages by number, one stage after another; texts are read again when they are asked for."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = stages
        self.starts = np.concatenate([[0], np.cumsum([stage.rows for stage in stages])]).astype(np.int64)
        self.total = int(self.starts[-1])

    def span(self, stage: int) -> Indices:
        """The numbers of a stage's rows."""
        return np.arange(self.starts[stage], self.starts[stage + 1])

    def column(self, name: str, stages: Sequence[int]) -> Iterator[Any]:
        """A small column of some stages' rows."""
        for number in stages:
            for batch in self.stages[number].batches([name]):
                yield from batch.column(0).to_pylist()

    def texts(self, stages: Sequence[int], with_media: bool = False) -> Iterator[list[str]]:
        """What is said in the rows of some stages, a batch at a time; rows with media read as "" unless asked for."""
        for number in stages:
            stage = self.stages[number]
            media = not with_media and any((stage.folder / MEDIA).iterdir())
            for batch in stage.batches(["messages"]):
                found = texts(batch.column(0))
                if media:
                    held = pc.match_substring(batch.column(0), '"media":').to_pylist()
                    found = ["" if has else text for has, text in zip(held, found, strict=True)]
                yield found

    def ids(self) -> NDArray[np.uint64]:
        """The id of every row as a number."""
        hexes = ("".join(batch.column(0).to_pylist()) for stage in self.stages for batch in stage.batches(["id"]))
        return np.concatenate([np.frombuffer(bytes.fromhex(part), dtype=">u8") for part in hexes])

    def values(self, column: str, numbers: Indices) -> list[str]:
        """A column's values of some rows, in the order that is asked for."""
        found: dict[int, str] = {}
        for stage, start in zip(self.stages, self.starts.tolist(), strict=False):
            wanted = np.unique(numbers[(numbers >= start) & (numbers < start + stage.rows)]) - start
            found |= {start + row: value for row, value in stage.pick(column, wanted)}
        return [found[number] for number in numbers.tolist()]

    def texts_of(self, numbers: Indices) -> list[str]:
        """What is said in some rows."""
        return texts(pa.array(self.values("messages", numbers), pa.large_string()))
