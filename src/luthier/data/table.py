"""Builds a table of graded rows from sources, seals it on disk, and reads it back.

Layout: rows-00000.parquet, media/<sha256> (original bytes, once each), ledger.jsonl, manifest.json. Knows
the layout and the pool that decodes; refuses to know targets' meaning, tokens and models.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from luthier import files
from luthier.console import progress, say
from luthier.data.formats import Graded, graded_row
from luthier.data.ledger import Ledger
from luthier.data.readers import read_source
from luthier.errors import DataError
from luthier.schema import Drop, Message, Provenance, Row, Target

if TYPE_CHECKING:
    from luthier.recipe import Columns, Limits, Scale, Source

MANIFEST = "manifest.json"
SHARD_ROWS = 100_000
WORKERS = 2  # decoding runs outside the interpreter's lock
_AHEAD = 16  # recordings in memory at once
_TEXT = ("id", "messages", "target", "group", "split", "source", "origin", "license", "attribution")
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in _TEXT),
        ("parents", pa.list_(pa.string())),
        ("seconds", pa.float64()),
        ("aux", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row with the length of its recording and the numeric columns that were carried along."""

    row: Row
    seconds: float
    aux: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A built table. `digest` is the sha256 of its rows' content, whatever the parquet layout."""

    rows: list[TableRow]
    folder: Path
    digest: str

    def media_bytes(self, ref: str) -> bytes:
        """The original bytes behind `sha256:<hex>`; DataError where they are gone or not what they were."""
        name = ref.removeprefix("sha256:")
        if len(name) != 64 or not set(name) <= set("0123456789abcdef"):
            raise DataError(f"{ref[:90]!r} is not a media reference", "give sha256:<64 hex digits>")
        path = self.folder / "media" / name
        if not path.is_file():
            raise DataError(f"{path} is not there", "build the table again")
        data = path.read_bytes()
        if files.sha256_bytes(data) != name:
            raise DataError(f"{path} is not what was written", "build the table again")
        return data

    def select(self, sources: Sequence[str] | None = None, split: str | None = None) -> list[TableRow]:
        """The rows of some sources and of one split, in order; None takes all."""
        return [
            item
            for item in self.rows
            if split in (None, item.row.split) and (sources is None or item.row.provenance.source in sources)
        ]


def build_table(
    sources: Sequence[tuple[Source, str]], columns: Columns, scale: Scale, limits: Limits, folder: Path
) -> Table:
    """Read every (source, split), keep what can be used and write the table to `folder`, all or nothing.

    Equal rows of one source are merged and counted. Raises SourceError for a source that cannot be read,
    DataError where a source has no usable row, ExistsError where `folder` is there.
    """
    ledger, rows = Ledger(), []
    about: dict[str, Any] = {}
    with files.atomic_folder(folder, about, MANIFEST) as place:
        (place / "media").mkdir()
        for source, split in sources:
            ledger.open(source.name)
            seen: set[str] = set()
            records = progress(_decoded(source, split, columns, scale, limits), f"reading {source.name}")
            for outcome in records:
                ledger.saw(source.name)
                if isinstance(outcome, Drop):
                    ledger.drop(outcome)
                elif outcome.row.id in seen:
                    ledger.merge(source.name)
                else:
                    ledger.keep(source.name)
                    seen.add(outcome.row.id)
                    _write_media(place / "media", outcome)
                    rows.append(TableRow(outcome.row, outcome.seconds, outcome.aux))
            if not seen:
                raise _none_left(source.name, ledger)
        ledger.write(place / "ledger.jsonl")
        about |= _write_rows(place, rows, ledger)
    say(ledger.table())
    return Table(rows, folder, about["digest"])


def read_table(folder: Path) -> Table:
    """Read a table that `build_table` wrote; DataError where it is missing, torn or changed."""
    mend = "build the table again"
    try:
        manifest = files.read_json(folder / MANIFEST)
        shards, count, digest = manifest["parquet"], manifest["rows"], manifest["digest"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} is not a table: {MANIFEST} cannot be read ({error})", mend) from error
    records: list[dict[str, Any]] = []
    for name, expected in sorted(shards.items()):
        path = folder / name
        if not path.is_file() or files.sha256_file(path) != expected:
            raise DataError(f"{path} is missing or not what was written", mend)
        records.extend(pq.read_table(path, schema=SCHEMA).to_pylist())
    if len(records) != count or _digest(records) != digest:
        raise DataError(f"{folder}: its rows are not those that {MANIFEST} names", mend)
    return Table([_from_record(record) for record in records], folder, digest)


def _decoded(source: Source, split: str, columns: Columns, scale: Scale, limits: Limits) -> Iterator[Graded | Drop]:
    """Records in their order, decoded by a small pool that never runs far ahead."""
    waiting: deque[Future[Graded | Drop]] = deque()
    with ThreadPoolExecutor(WORKERS) as pool:
        for origin, record in islice(read_source(source, columns), source.limit or None):
            where = Provenance(source.name, origin)
            waiting.append(pool.submit(graded_row, record, columns, scale, limits, where, split))
            if len(waiting) >= _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _none_left(source: str, ledger: Ledger) -> DataError:
    counts = ledger.counts[source]
    first = next((f"; the first: {drop.origin}: {drop.detail}" for drop in ledger.drops if drop.source == source), "")
    return DataError(
        f"source {source}: none of its {counts.seen} records can be used: {counts.why()}{first}",
        "check the recipe's data.columns, data.limits and scale against the source",
    )


def _write_media(folder: Path, outcome: Graded) -> None:
    for ref in outcome.row.media:
        path = folder / ref.removeprefix("sha256:")
        if not path.exists():
            path.write_bytes(outcome.media)


def _write_rows(place: Path, rows: Sequence[TableRow], ledger: Ledger) -> dict[str, Any]:
    """Write the shards. Returns what the manifest says of them."""
    records = [_to_record(item) for item in rows]
    shards = {}
    for number, start in enumerate(range(0, len(records), SHARD_ROWS)):
        path = place / f"rows-{number:05d}.parquet"
        pq.write_table(pa.Table.from_pylist(records[start : start + SHARD_ROWS], schema=SCHEMA), path)
        shards[path.name] = files.sha256_file(path)
    digest = _digest(records)
    counts = {name: counts.to_json() for name, counts in ledger.counts.items()}
    return {"rows": len(records), "digest": digest, "parquet": shards, "sources": counts}


def _digest(records: Sequence[dict[str, Any]]) -> str:
    digest = hashlib.sha256()
    for record in records:
        digest.update(_compact(record).encode() + b"\n")
    return digest.hexdigest()


def _compact(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _to_record(item: TableRow) -> dict[str, Any]:
    row, where = item.row, item.row.provenance
    return {
        "id": row.id,
        "messages": _compact([message.to_json() for message in row.messages]),
        "target": _compact(row.target.to_json()),
        "group": row.group,
        "split": row.split,
        "source": where.source,
        "origin": where.origin,
        "license": where.license,
        "attribution": where.attribution,
        "parents": list(where.parents),
        "seconds": item.seconds,
        "aux": _compact(item.aux),
    }


def _from_record(record: dict[str, Any]) -> TableRow:
    where = Provenance(
        record["source"], record["origin"], record["license"], record["attribution"], tuple(record["parents"] or ())
    )
    messages = tuple(Message.from_json(message) for message in json.loads(record["messages"]))
    row = Row(
        record["id"], messages, Target.from_json(json.loads(record["target"])), record["group"], record["split"], where
    )
    return TableRow(row, record["seconds"], json.loads(record["aux"]))
