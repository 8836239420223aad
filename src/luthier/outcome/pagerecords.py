"""The records of a run or of an examination, as pages read them: what is missing is empty, what is broken is named.

This module refuses to know what the records mean.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from luthier import files

Json = dict[str, Any]


class Records:
    """Reads the files of one folder by name. What is missing is empty; what is broken is noted by name in `notes`."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.notes: list[str] = []

    def text(self, name: str) -> str:
        """A file's text, empty where there is none."""
        path = self.run / name
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""

    def document(self, name: str) -> Json:
        """One JSON object, empty where there is none."""
        found = self._read(name, files.read_json) or {}
        if not isinstance(found, dict):
            self.notes.append(f"{name} cannot be read: it is a {type(found).__name__}, not an object")
            return {}
        return found

    def lines(self, name: str) -> list[Json]:
        """The objects of a file of JSON lines."""
        return [row for row in self._read(name, files.read_jsonl) or [] if isinstance(row, dict)]

    def _read(self, name: str, reader: Callable[[Path], Any]) -> Any:
        try:
            return reader(self.run / name) if (self.run / name).is_file() else None
        except ValueError as error:
            self.notes.append(f"{name} cannot be read: {error}")
            return None

    def messages(self, ids: set[str]) -> dict[str, list[Json]]:
        """Row id -> its messages, for the rows asked for; columns and rows are filtered while reading."""
        import pyarrow as pa
        import pyarrow.parquet as parquet

        found: dict[str, list[Json]] = {}
        for path in sorted((self.run / "data").glob("rows-*.parquet")) if ids else []:
            try:
                table = parquet.read_table(path, columns=["id", "messages"], filters=[("id", "in", ids)])
                found |= {row["id"]: json.loads(row["messages"]) for row in table.to_pylist()}
            except (pa.ArrowException, OSError, ValueError) as error:
                self.notes.append(f"data/{path.name} cannot be read: {str(error).splitlines()[0]}")
        return found
