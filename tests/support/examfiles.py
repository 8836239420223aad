"""Small exam files for tests."""

import json
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def lines(path: Path, records: list[Record]) -> Path:
    """Records as JSON lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def good(n: int) -> Record:
    """A sound two-way question with an id; odd ones are answered by the second option."""
    return {"id": f"g{n}", "question": f"Question {n}?", "options": ["x", "y"], "answer": "AB"[n % 2]}
