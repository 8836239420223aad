"""Reads a table back, whole or as a stream, and finds its media.

Layout: rows-00000.parquet, media/<sha256> (original bytes, once each), ledger.jsonl, manifest.json. Knows the layout
and checks every byte against the manifest; refuses to know sources, steps, tokens and models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from luthier import files
from luthier.console import say
from luthier.data.building.build import build
from luthier.data.building.mixture import MANIFEST
from luthier.data.building.request import TableRequest
from luthier.data.building.rows import SCHEMA, TableRow, from_record
from luthier.data.building.shards import digest_of
from luthier.errors import DataError

_MEND = "build the table again"


@dataclass(frozen=True)
class Table:
    """A built table. `digest` is the sha256 of its rows' content, whatever the parquet layout."""

    rows: list[TableRow]
    folder: Path
    digest: str

    def media_bytes(self, ref: str) -> bytes:
        """The original bytes behind `sha256:<hex>`; DataError where they are gone or not what they were."""
        return media_bytes(self.folder, ref)

    def select(self, sources: Sequence[str] | None = None, split: str | None = None) -> list[TableRow]:
        """The rows of some sources and of one split, in order; None takes all."""
        return [
            item
            for item in self.rows
            if split in (None, item.row.split) and (sources is None or item.row.provenance.source in sources)
        ]


def build_table(request: TableRequest, folder: Path) -> Table:
    """Build a table for a run (nothing is kept beside it), print its ledger and read it."""
    built = build(request, folder)
    say(built.ledger.table())
    return read_table(folder)


def read_manifest(folder: Path) -> dict[str, Any]:
    """A table's manifest; DataError where `folder` is no table."""
    try:
        manifest = files.read_json(folder / MANIFEST)
        if not isinstance(manifest, dict) or not isinstance(manifest["files"], dict):
            raise TypeError("it does not list the table's files")
        return manifest
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} is not a table: {MANIFEST} cannot be read ({error})", _MEND) from error


def shards(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, sha256) of a table's parquet files, in order."""
    files_there = manifest["files"].items()
    return sorted((name, about["sha256"]) for name, about in files_there if name.endswith(".parquet"))


def read_table(folder: Path) -> Table:
    """Read a whole table; DataError where it is missing, torn or changed."""
    manifest = read_manifest(folder)
    parts = [_shard(folder, name, expected) for name, expected in shards(manifest)]
    if sum(len(part) for part in parts) != manifest.get("rows") or digest_of(parts) != manifest.get("digest"):
        raise DataError(f"{folder}: its rows are not those that {MANIFEST} names", _MEND)
    rows = [from_record(record) for part in parts for record in part.to_pylist()]
    return Table(rows, folder, str(manifest["digest"]))


def iter_batches(folder: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """A table as batches of its columns, in order, one row group in memory; each shard is checked when it comes."""
    for name, expected in shards(read_manifest(folder)):
        _check_shard(folder, name, expected)
        with pq.ParquetFile(folder / name) as file:
            yield from file.iter_batches(batch_size=2048, columns=list(columns) if columns else None)


def iter_rows(folder: Path, where: Mapping[str, str] | None = None) -> Iterator[TableRow]:
    """Rows as a stream, in order; `where` asks for equal columns, such as {"split": "train"}."""
    for batch in iter_batches(folder):
        for record in batch.to_pylist():
            if all(record[key] == value for key, value in (where or {}).items()):
                yield from_record(record)


def media_bytes(folder: Path, ref: str) -> bytes:
    """The original bytes of a table's media; DataError where they are gone or not what they were."""
    name = ref.removeprefix("sha256:")
    if len(name) != 64 or not set(name) <= set("0123456789abcdef"):
        raise DataError(f"{ref[:90]!r} is not a media reference", "give sha256:<64 hex digits>")
    path = folder / "media" / name
    if not path.is_file():
        raise DataError(f"{path} is not there", _MEND)
    data = path.read_bytes()
    if files.sha256_bytes(data) != name:
        raise DataError(f"{path} is not what was written", _MEND)
    return data


def _check_shard(folder: Path, name: str, expected: str) -> None:
    path = folder / name
    if not path.is_file() or files.sha256_file(path) != expected:
        raise DataError(f"{path} is missing or not what was written", _MEND)


def _shard(folder: Path, name: str, expected: str) -> pa.Table:
    _check_shard(folder, name, expected)
    return pq.read_table(folder / name, schema=SCHEMA)
