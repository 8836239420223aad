"""Counts what became of every record: kept, merged with an equal one, or dropped for a named reason.

Knows sources and reasons; refuses to know what a row holds. The sum always closes: in = kept + merged +
dropped.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from luthier import console, files
from luthier.errors import LuthierError
from luthier.schema import Drop


@dataclass
class Counts:
    """The sums of one source, in records."""

    seen: int = 0
    kept: int = 0
    merged: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        return {
            "in": self.seen,
            "kept": self.kept,
            "merged": self.merged,
            "dropped": dict(sorted(self.dropped.items())),
        }

    def why(self) -> str:
        """The drops in words, the most frequent first: `3 silent_audio, 1 missing_grade`."""
        words = [f"{count} {reason}" for reason, count in self.dropped.most_common()]
        return ", ".join(words) or "none dropped"


class Ledger:
    """`saw` once for each record read, then one of `keep`, `merge`, `drop` for the same record."""

    def __init__(self) -> None:
        self.counts: dict[str, Counts] = {}
        self.drops: list[Drop] = []

    def open(self, source: str) -> Counts:
        """The sums of a source; a source that yields nothing is listed too, with zeros."""
        return self.counts.setdefault(source, Counts())

    def saw(self, source: str) -> None:
        self.open(source).seen += 1

    def keep(self, source: str) -> None:
        self.open(source).kept += 1

    def merge(self, source: str) -> None:
        self.open(source).merged += 1

    def drop(self, drop: Drop) -> None:
        self.open(drop.source).dropped[drop.reason] += 1
        self.drops.append(drop)

    def check(self) -> None:
        """Raise LuthierError where a source's sum does not close: a record went missing without a word."""
        for source, counts in self.counts.items():
            found = counts.kept + counts.merged + counts.dropped.total()
            if counts.seen != found:
                raise LuthierError(
                    f"source {source}: {counts.seen} records came in, {found} came out",
                    "this is a fault of luthier: please report it with the recipe",
                )

    def lines(self) -> list[dict[str, Any]]:
        """One summary per source, then one line per dropped record."""
        summary = [{"source": source, **counts.to_json()} for source, counts in self.counts.items()]
        dropped = [asdict(drop) for drop in self.drops]
        return [*summary, *dropped]

    def write(self, path: Path) -> None:
        """Write `lines` as JSON lines, after `check`."""
        self.check()
        files.write_jsonl(path, self.lines())

    def table(self) -> str:
        """The sums as a text table."""
        rows = [
            [source, c.seen, c.kept, c.merged, c.dropped.total(), c.why() if c.dropped else ""]
            for source, c in self.counts.items()
        ]
        return console.table(["source", "in", "kept", "merged", "dropped", "why"], rows)
