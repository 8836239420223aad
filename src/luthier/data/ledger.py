"""Counts what became of every record: kept, merged with an equal one, or dropped for a named reason.

Knows sources and reasons; refuses to know what a row holds. The sum always closes: in = kept + merged +
dropped. What happened to single records (drops, merges, changes) is written as it happens and never held in memory.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from luthier import console
from luthier.errors import DataError, LuthierError
from luthier.schema import Drop


@dataclass
class Counts:
    """The sums of one source, in records. `changed` rows are among the kept ones."""

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

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Counts:
        return cls(value["in"], value["kept"], value["merged"], Counter(value["dropped"]))

    def why(self) -> str:
        """The drops in words, the most frequent first: `3 silent_audio, 1 missing_grade`."""
        words = [f"{count:,} {reason}" for reason, count in self.dropped.most_common()]
        return ", ".join(words) or "none dropped"


class Ledger:
    """The sums of all sources."""

    def __init__(self) -> None:
        self.counts: dict[str, Counts] = {}

    def open(self, source: str) -> Counts:
        """The sums of a source; a source that yields nothing is listed too, with zeros."""
        return self.counts.setdefault(source, Counts())

    def check(self) -> None:
        """Raise LuthierError where a source's sum does not close: a record went missing without a word."""
        for source, counts in self.counts.items():
            found = counts.kept + counts.merged + counts.dropped.total()
            if counts.seen != found:
                raise LuthierError(
                    f"source {source}: {counts.seen} records came in, {found} came out",
                    "this is a fault of luthier: please report it with the recipe",
                )

    def write(self, path: Path, events: Iterable[bytes] = ()) -> None:
        """Write one summary per source, then the events (JSON lines), after `check`."""
        self.check()
        with path.open("wb") as stream:
            for source, counts in self.counts.items():
                stream.write(orjson.dumps({"source": source, **counts.to_json()}) + b"\n")
            for event in events:
                stream.write(event)

    def table(self) -> str:
        """The sums as a text table, with a last line over all sources."""
        rows: list[list[object]] = [
            [
                source,
                f"{c.seen:,}",
                f"{c.kept:,}",
                f"{c.merged:,}",
                f"{c.dropped.total():,}",
                c.why() if c.dropped else "",
            ]
            for source, c in self.counts.items()
        ]
        if len(rows) > 1:
            every = self.counts.values()
            sums = [
                sum(item) for item in zip(*((c.seen, c.kept, c.merged, c.dropped.total()) for c in every), strict=True)
            ]
            rows.append(["all", *(f"{value:,}" for value in sums), ""])
        shown = console.table(["source", "in", "kept", "merged", "dropped", "why"], rows)
        cut = [f"{source}: {c.why()}" for source, c in self.counts.items() if c.dropped and c.why() not in shown]
        whole = [textwrap.fill(line, console.WIDTH, initial_indent="  ", subsequent_indent="    ") for line in cut]
        return "\n".join([shown, *whole])


def drop_event(drop: Drop, step: str = "", identity: str = "", changes: Sequence[Mapping[str, str]] = ()) -> bytes:
    """The line of a dropped record; where a step dropped a row that had been read, with what steps before it did."""
    more = {key: value for key, value in (("step", step), ("id", identity), ("changed", changes)) if value}
    found = {"source": drop.source, "origin": drop.origin, "reason": drop.reason, "detail": drop.detail, **more}
    return event(found)


def event(found: Mapping[str, Any]) -> bytes:
    """One JSON line; characters that UTF-8 cannot write (half of a pair) are shown as question marks."""
    try:
        return orjson.dumps(found) + b"\n"
    except TypeError:
        clean = {
            key: value.encode(errors="replace").decode() if isinstance(value, str) else value
            for key, value in found.items()
        }
        return orjson.dumps(clean) + b"\n"


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a ledger, summaries first. Raises DataError where the file is not there or torn."""
    try:
        with path.open("rb") as stream:
            for line in stream:
                yield orjson.loads(line)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: the ledger cannot be read: {error}", "build the table again") from error
