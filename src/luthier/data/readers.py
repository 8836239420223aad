"""Reads raw records out of parquet, csv, tsv, json, jsonl, folders of recordings and hub datasets.

Knows file shapes and where a table's recordings lie; refuses to judge a record: what is broken in one is
handed on under `ERROR` for the ledger. A file is known by its first bytes, then by its suffix. Tables are
read in batches; recordings beside a table stay on disk until they are wanted.
"""

from __future__ import annotations

import csv
import difflib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from luthier.data.hubfiles import fetch_split, split_files
from luthier.errors import SourceError

if TYPE_CHECKING:
    from luthier.recipe import Columns, Source

ERROR = "\0error"
"""The key under which a record that could not be read carries (reason, detail); no column has this name."""
BATCH = 64
_PEEK = 200
Record = dict[str, Any]
_FOLDER_TABLES = ("metadata.csv", "metadata.jsonl")


@dataclass(frozen=True)
class _Place:
    """Where a table's relative recording names begin, and whether absolute ones may be used at all."""

    folder: Path
    trusted: bool


def read_source(source: Source, columns: Columns) -> Iterator[tuple[str, Record]]:
    """Yield (origin, record) for every record of a source; `path` wins over `hub`.

    `origin` is the file's name, the record's number from 1 and its id column. A record holds only the columns
    that `columns` names; a recording is bytes, a Path, or None. A record that could not be read holds
    `ERROR: (reason, detail)`. Raises SourceError for a source that is missing or torn, or lacks a column.
    """
    if not source.path:
        if not source.hub:
            raise SourceError(
                f"source {source.name} has neither a path nor a hub id", f"--set data.sources.{source.name}.path=FILE"
            )
        paths, folder = fetch_split(source)
    else:
        paths, folder = _local_tables(source)
    place = _Place(Path(source.audio_folder) if source.audio_folder else folder, bool(source.audio_folder))
    if place.trusted and not place.folder.is_dir():
        raise SourceError(
            f"source {source.name}: the audio folder {place.folder} is not there",
            f"set data.sources.{source.name}.audio_folder to a folder",
        )
    for path in paths:
        reader = _reader(source, path)
        try:
            yield from _records(source, path, columns, place, reader)
        except (OSError, csv.Error, UnicodeDecodeError) as error:
            raise SourceError(
                f"source {source.name}: {path} cannot be read: {error}",
                "restore the file from its origin; text has to be UTF-8",
            ) from error


def column_for(names: Iterable[str], available: Iterable[str]) -> str | None:
    """The first of `names` that is among `available`."""
    there = set(available)
    return next((name for name in names if name in there), None)


def _local_tables(source: Source) -> tuple[list[Path], Path]:
    path = Path(source.path).expanduser()
    if not path.exists():
        raise SourceError(f"source {source.name}: {path} is not there", f"--set data.sources.{source.name}.path=FILE")
    if not path.is_dir():
        return [path], path.parent
    for name in _FOLDER_TABLES:
        if (path / name).is_file():
            return [path / name], path
    names = sorted(item.relative_to(path).as_posix() for item in path.rglob("*.parquet"))
    found = split_files(names, source.split)
    if found:
        return [path / name for name in found], path
    tables = sorted(item for suffix in ("csv", "tsv", "jsonl") for item in path.glob(f"*.{suffix}"))
    if len(tables) == 1:
        return tables, path
    listed = ", ".join(item.name for item in tables) or "no table"
    raise SourceError(
        f"source {source.name}: in the folder {path} there is {listed}; one is needed",
        f"add metadata.csv or metadata.jsonl, or --set data.sources.{source.name}.path=FILE",
    )


Rows = Iterator[Record]
Reader = Callable[[Path, Sequence[str]], Rows]


def _reader(source: Source, path: Path) -> Reader:
    try:
        with path.open("rb") as stream:
            head = stream.read(64)
    except OSError as error:
        raise SourceError(
            f"source {source.name}: {path} cannot be opened: {error.strerror}",
            f"--set data.sources.{source.name}.path=FILE",
        ) from error
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    suffix = path.suffix.lower()
    if head[:4] == b"PAR1" or suffix == ".parquet":
        return _parquet
    if suffix in (".csv", ".tsv"):
        return _delimited
    if text[:1] == b"[" or suffix == ".json":
        return _json
    if text[:1] == b"{" or suffix in (".jsonl", ".ndjson"):
        return _jsonl
    raise SourceError(
        f"source {source.name}: {path.name} is not parquet, csv, tsv, json or jsonl",
        "convert it, or give the file its right suffix",
    )


def _records(
    source: Source, path: Path, columns: Columns, place: _Place, reader: Reader
) -> Iterator[tuple[str, Record]]:
    """Check a table's columns, then pair each record with its origin and find its recording."""
    wanted = [name for names in vars(columns).values() for name in names]
    rows = _guarded(source, path, reader(path, [*wanted, "file_name"]))
    first = list(itertools.islice(rows, _PEEK))
    found = list(dict.fromkeys(key for row in first for key in row if key != ERROR))
    audio = column_for([*columns.audio, "file_name"], found)
    if found:
        _require(source, path, columns, [*found, columns.audio[0]] if audio == "file_name" else found)
    identity = column_for(columns.id, found)
    # One column for a role in the whole file: a line without it must not fall back to another meaning.
    chosen = [column_for(names, found) for names in (columns.prompt, columns.grade, columns.group)]
    taken = [name for name in [*chosen, *columns.raters, *columns.held_back, *columns.keep] if name]
    for number, row in enumerate(itertools.chain(first, rows), start=1):
        record = {key: row[key] for key in taken if key in row}
        if ERROR in row:
            record[ERROR] = row[ERROR]
        elif audio is not None:
            # `file_name` is what audio folders call the recording; it goes by the recipe's own name for it.
            name = columns.audio[0] if audio == "file_name" else audio
            record[name] = _recording(row.get(audio), place, record)
        label = f" {row[identity]}" if identity and row.get(identity) not in (None, "") else ""
        yield f"{path.name}#{number}{label}", record


def _guarded(source: Source, path: Path, rows: Rows) -> Rows:
    import pyarrow

    try:
        yield from rows
    except pyarrow.ArrowException as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SourceError(
            f"source {source.name}: {path} is torn or not parquet: {reason}", "fetch or write the file again"
        ) from error
    except _Malformed as error:
        raise SourceError(
            f"source {source.name}: {path} is not what its name says: {error}",
            "mend the file, or give it its right suffix",
        ) from error


def _require(source: Source, path: Path, columns: Columns, found: Sequence[str]) -> None:
    missing = {
        key: names
        for key, names in (("audio", columns.audio), ("prompt", columns.prompt), ("grade", columns.grade))
        if column_for(names, found) is None
    }
    if not missing:
        return
    key, names = next(iter(missing.items()))
    near = [match for name in names for match in difflib.get_close_matches(name, found, n=1, cutoff=0.6)]
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise SourceError(
        f"source {source.name}: {path.name} has no column for {', '.join(missing)} "
        f"(looked for {', '.join(names)}); it has {', '.join(found)}",
        f"{hint}set data.columns.{key} to one of its columns",
    )


def _recording(value: Any, place: _Place, record: Record) -> bytes | Path | None:
    """Bytes as they are, a name as a Path; a name that leaves its folder marks the record."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        return None
    # Normalised by name alone: a hub's cache keeps its files as links that point elsewhere.
    root = os.path.abspath(place.folder)
    full = os.path.normpath(os.path.join(root, value))
    inside = PurePath(full).is_relative_to(root)
    steps_out = ".." in PurePath(value.replace("\\", "/")).parts or PurePath(value).is_absolute()
    if not inside or (steps_out and not place.trusted):
        record[ERROR] = ("path_outside_folder", f"{value} is not inside {place.folder}; set audio_folder")
        return None
    return Path(full)


def _parquet(path: Path, wanted: Sequence[str]) -> Rows:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, memory_map=True) as file:
        names = file.schema_arrow.names
        columns = [name for name in dict.fromkeys(wanted) if name in names]
        # Columns that nobody asked for are named, not read: an error message lists them.
        others: Record = {name: None for name in names if name not in columns}
        for batch in file.iter_batches(batch_size=BATCH, columns=columns):
            for row in batch.to_pylist():
                yield {**others, **row}


def _delimited(path: Path, wanted: Sequence[str]) -> Rows:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        header = stream.readline()
        stream.seek(0)
        delimiter = (
            "\t"
            if path.suffix.lower() == ".tsv" or ("\t" in header and "," not in header)
            else (";" if ";" in header and "," not in header else ",")
        )
        reader = csv.DictReader(stream, delimiter=delimiter, strict=True)
        names = list(reader.fieldnames or [])
        if len(set(names)) < len(names):
            raise _Malformed(f"two columns share a name: {', '.join(names)}")
        for row in reader:
            if None in row or None in row.values():
                count = len(row.get(None, [])) + sum(value is not None for key, value in row.items() if key)
                yield {ERROR: ("broken_line", f"line {reader.line_num}: {count} fields in place of {len(names)}")}
            else:
                yield dict(row)


class _Malformed(ValueError):
    """A whole file that cannot be parsed."""


def _json(path: Path, wanted: Sequence[str]) -> Rows:
    try:
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            yield from _jsonl(path, wanted)  # many a .json holds one object per line
            return
        raise _Malformed(str(error)) from error
    if isinstance(value, dict):
        lists = [item for item in value.values() if isinstance(item, list)]
        value = lists[0] if len(lists) == 1 else None
    if not isinstance(value, list):
        raise _Malformed("neither a list of objects nor an object that holds one list")
    for number, row in enumerate(value, start=1):
        yield row if isinstance(row, dict) else {ERROR: ("broken_line", f"element {number}: not an object")}


def _jsonl(path: Path, wanted: Sequence[str]) -> Rows:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                yield {ERROR: ("broken_line", f"line {number}: {error}")}
                continue
            yield row if isinstance(row, dict) else {ERROR: ("broken_line", f"line {number}: not an object")}
