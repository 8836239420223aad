"""Answers that stand in a file of their own: one a line, or rows with an id and a label.

Knows lines, rows and how they find their items; refuses to know how an answer is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.data.readers import open_source
from luthier.data.reading.lines import Broken, numbered_lines, text_of
from luthier.data.reading.sniff import Shape, named_shape
from luthier.data.shapes.asked import ANSWERS, IDS, own_id
from luthier.errors import DataError, SourceError
from luthier.recipe_data import Source

_MEND = "give one answer a line, or rows with an id and a label"


@dataclass(frozen=True)
class Labels:
    """The answers of a file in its order; `ids` says whose they are, None where order does."""

    path: Path
    cells: list[Any]
    ids: list[str] | None = None

    def for_items(self, own_ids: Sequence[str]) -> list[Any]:
        """The answer of each record of an exam, None where there is none; by id where both files have ids.

        Raises DataError where ids come twice, or where order decides and the numbers differ.
        """
        if self.ids is not None and all(own_ids):
            by_id = dict(zip(self.ids, self.cells, strict=True))
            if len(by_id) < len(self.ids):
                twice = next(one for place, one in enumerate(self.ids) if one in self.ids[:place])
                raise DataError(f"{self.path}: the id {twice} has two labels", "keep the one that is right")
            return [by_id.get(one) for one in own_ids]
        if len(self.cells) != len(own_ids):
            raise DataError(
                f"{self.path}: {len(self.cells):,} labels for an exam of {len(own_ids):,} records, and no ids to tell "
                "whose they are",
                "give one label for each record, in the same order, or ids in both files",
            )
        return self.cells


def read_labels(path: Path) -> Labels:
    """Read a file of labels. Raises SourceError for one that cannot be opened, DataError for one of no known shape."""
    return _rows(path) if named_shape(path.name) not in ("", "text") else _lines(path)


def _lines(path: Path) -> Labels:
    cells: list[Any] = []
    try:
        for number, line in numbered_lines(path, Shape("text")):
            text = line if isinstance(line, Broken) else text_of(line)
            if isinstance(text, Broken):
                raise DataError(f"{path}: line {number}: {text.reason}: {text.detail}", _MEND)
            cells.append(text.strip())
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}", "name the file of labels") from error
    while cells and not cells[-1]:
        cells.pop()
    return Labels(path, cells)


def _rows(path: Path) -> Labels:
    cells, ids = [], []
    for origin, record in open_source(Source(name="labels", path=str(path)), IDS):
        if isinstance(record, Broken):
            raise DataError(f"{path}: {origin}: {record.reason}: {record.detail}", _MEND)
        own = [name for name in record if name not in IDS]
        column = next((name for name in ANSWERS if name in record), own[0] if len(own) == 1 else "")
        if not column:
            raise DataError(f"{path}: {origin}: no label among the columns {', '.join(map(str, record))}", _MEND)
        cells.append(record[column])
        ids.append(own_id(record))
    return Labels(path, cells, ids if ids and all(ids) else None)
