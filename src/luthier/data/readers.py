"""Opens a source and gives its raw records, from files, folders, hub datasets and remote addresses alike.

Knows which reader a file needs and what a record's origin is called; refuses to judge what a record holds: all
columns are given as they are, and media beside a table stay on disk. What cannot be read is `Broken`, with a reason.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.data.reading import remote
from luthier.data.reading.folders import Found, Nothing, find_rows
from luthier.data.reading.hubfiles import fetch_split
from luthier.data.reading.hubstream import open_stream
from luthier.data.reading.jsonfiles import json_lines, json_list
from luthier.data.reading.lines import Broken, Malformed, Record, of_the_file, texts
from luthier.data.reading.sniff import Shape, Unknown, sniff
from luthier.data.reading.tables import delimited, open_parquet, parquet
from luthier.errors import SourceError

if TYPE_CHECKING:
    from luthier.recipe_data import Source

__all__ = ["REASONS", "Broken", "Reading", "Record", "columns_seen", "open_source", "peek"]

REASONS = (
    "broken_line",
    "truncated_line",
    "line_too_long",
    "two_objects",
    "not_an_object",
    "duplicate_key",
    "not_finite",
    "not_utf8",
    "nul_byte",
    "too_deep",
    "corrupt_row_group",
    "unreadable_value",
)
SAMPLES = ("line", "paragraph", "document")
IDENTITY = ("utt_id", "id")
PEEK_BYTES = 64 * 2**20
Items = Iterator[tuple[str, Record | Broken]]


@dataclass(frozen=True)
class Reading:
    """A source that is ready to be read. Each iteration gives (origin, record or Broken) from the first on.

    `origin` is the file's name and the record's number from 1 (in text and JSON lines, the line's), then the record's
    id column where it has one. While it is read, SourceError is raised for a file that turns out to be torn.
    """

    source: Source
    files: tuple[Path, ...]
    """Local files that will be read; none for a stream and for a folder of media alone."""
    folder: Path
    """Where relative names of media begin."""
    trusted: bool
    """The user named that folder: absolute names inside it may be used."""
    sniffed: str
    """What was found, for a person: "2 files of parquet", "folder of audio with metadata.csv"."""
    revision: str
    """The commit of a hub dataset that is really read; "" for everything else."""
    items: Callable[[], Items] = field(repr=False)
    """Gives the items anew, without the source's limit."""

    def __iter__(self) -> Items:
        return islice(self.items(), self.source.limit) if self.source.limit > 0 else self.items()


def open_source(source: Source, identity: Sequence[str] = IDENTITY) -> Reading:
    """Find and sniff the files of a source; nothing of its rows is read yet. `path` wins over `hub`.

    `identity` names columns that may hold a record's id. Raises SourceError for a source that is missing, torn or of
    a shape that is not read, naming file, reason and mend.
    """
    if source.sample_by not in SAMPLES:
        raise SourceError(
            f"source {source.name}: sample_by is {source.sample_by!r}, not one of {', '.join(SAMPLES)}",
            f"--set data.sources.{source.name}.sample_by=line",
        )
    named = [source.columns["id"]] if "id" in source.columns else list(identity)
    if not source.path and not source.hub:
        raise SourceError(
            f"source {source.name} has neither a path nor a hub id", f"--set data.sources.{source.name}.path=FILE"
        )
    if source.streaming and not source.path:
        return _streamed(source, named)
    revision = ""
    if source.path and not remote.is_address(source.path):
        found = _local(source)
    else:
        fetched = remote.fetch(source) if source.path else fetch_split(source)
        found, revision = Found(fetched.folder, fetched.paths), fetched.revision
    folder, trusted = _media_folder(source, found.root)
    shapes = [_sniffed(source, path) for path in found.files]
    sniffed = found.about or _counted(shapes)

    def items() -> Items:
        if found.media:
            return _media_items(found)
        return _all_files(source, found.files, shapes, named)

    return Reading(source, found.files, folder, trusted, sniffed, revision, items)


def peek(reading: Reading, count: int = 200) -> list[Record]:
    """The first good records, at most `count` and fewer where they are large; the reading is left as it was."""
    records: list[Record] = []
    size = 0
    for _, record in islice(iter(reading), 10 * count):
        if isinstance(record, Broken):
            continue
        records.append(record)
        size += sum(len(cell) for value in record.values() for cell in _cells(value) if isinstance(cell, bytes))
        if len(records) >= count or size > PEEK_BYTES:
            break
    return records


def columns_seen(records: Iterable[Record]) -> tuple[str, ...]:
    """The columns of some records, in the order in which they are first seen."""
    return tuple(dict.fromkeys(key for record in records for key in record))


def _cells(value: object) -> Iterable[object]:
    return value.values() if isinstance(value, dict) else (value,)


def _local(source: Source) -> Found:
    path = Path(source.path.removeprefix("file://")).expanduser()
    mend = f"--set data.sources.{source.name}.path=FILE"
    try:
        if not path.exists():
            raise SourceError(f"source {source.name}: {path} is not there", mend)
        if path.is_dir():
            return find_rows(path, source.split, corpus=source.format == "text")
        if not path.is_file():  # a pipe would be waited for without end, and cannot be read twice
            raise SourceError(f"source {source.name}: {path} is neither a file nor a folder", mend)
    except Nothing as error:
        raise SourceError(
            f"source {source.name}: in the folder {path} {error}",
            f"add metadata.csv or metadata.jsonl, or {mend}",
        ) from error
    except (OSError, ValueError) as error:
        raise SourceError(f"source {source.name}: {path} cannot be opened: {error}", mend) from error
    return Found(path.parent, (path,))


def _media_folder(source: Source, root: Path) -> tuple[Path, bool]:
    if not source.audio_folder:
        return root, False
    folder = Path(source.audio_folder).expanduser()
    if not folder.is_dir():
        raise SourceError(
            f"source {source.name}: the audio folder {folder} is not there",
            f"set data.sources.{source.name}.audio_folder to a folder",
        )
    return folder, True


def _sniffed(source: Source, path: Path) -> Shape:
    """The shape of a file; a parquet file's footer is read too, as a torn one has none."""
    import pyarrow

    mend = "restore the file from its origin, or fetch or write it again"
    try:
        shape = sniff(path)
        if shape.name == "parquet":
            if shape.packing:
                raise Unknown(f"parquet inside {shape.packing}")
            open_parquet(path).close()
    except Unknown as error:
        raise SourceError(
            f"source {source.name}: {path.name} is not parquet, csv, tsv, json, jsonl or text: it is {error}",
            "convert it, or give the file its right suffix",
        ) from error
    except Malformed as error:
        raise SourceError(f"source {source.name}: {path} is not what its name says: {error}", mend) from error
    except pyarrow.ArrowException as error:
        raise SourceError(f"source {source.name}: {path} is torn or not parquet: {_first(error)}", mend) from error
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is None and not of_the_file(error):
            raise  # the caller's own, as in `_guarded`
        raise SourceError(f"source {source.name}: {path} is torn or cannot be opened: {_first(error)}", mend) from error
    return shape


def _counted(shapes: Sequence[Shape]) -> str:
    """Such as "2 files of jsonl, gzip; 1 file of jsonl"."""
    counts = {str(shape): sum(str(other) == str(shape) for other in shapes) for shape in shapes}
    return "; ".join(f"{count} file{'s' * (count > 1)} of {name}" for name, count in counts.items())


def _all_files(source: Source, paths: Sequence[Path], shapes: Sequence[Shape], identity: Sequence[str]) -> Items:
    names = [path.name for path in paths]
    for path, shape in zip(paths, shapes, strict=True):
        # Two shards of one name in two folders are told apart by their folders.
        name = path.name if names.count(path.name) == 1 else f"{path.parent.name}/{path.name}"
        yield from _labelled(name, _guarded(source, path, shape), identity)


def _labelled(name: str, rows: Iterator[tuple[int, Record | Broken]], identity: Sequence[str]) -> Items:
    """Rows with their origins. The id column of a file is that of its first good record."""
    column = ""
    undecided = True
    for number, row in rows:
        if undecided and type(row) is dict:
            column = next((one for one in identity if one in row), "")
            undecided = False
        label = row.get(column) if column and type(row) is dict else None
        if isinstance(label, str) and label:
            yield f"{name}#{number} {_short(label)}", row
        elif type(label) is int:
            yield f"{name}#{number} {label}", row
        else:
            yield f"{name}#{number}", row


def _short(label: str) -> str:
    """An id fit for one line of a ledger."""
    if len(label) <= 80 and label.isprintable():
        return label
    return "".join(character if character.isprintable() else "?" for character in label[:80])


def _guarded(source: Source, path: Path, shape: Shape) -> Iterator[tuple[int, Record | Broken]]:
    """The rows of a file; whatever of the file ends the reading early becomes a SourceError."""
    import pyarrow

    try:
        if shape.name == "parquet":
            yield from parquet(path, shape)
        elif shape.name == "jsonl":
            yield from json_lines(path, shape)
        elif shape.name == "json":
            yield from json_list(path, shape)
        elif shape.name == "csv":
            yield from delimited(path, shape)
        else:
            yield from texts(path, shape, source.sample_by)
    except Malformed as error:
        raise SourceError(
            f"source {source.name}: {path} is not what its name says: {error}",
            "mend the file, or give it its right suffix",
        ) from error
    except (EOFError, zlib.error, pyarrow.ArrowException) as error:
        raise _torn(source, path, error) from error
    except OSError as error:
        if of_the_file(error):
            raise _torn(source, path, error) from error
        if error.errno is None:  # no disk said this: it is the caller's own, such as the TimeoutError of an alarm
            raise
        raise SourceError(
            f"source {source.name}: {path} cannot be read: {_first(error)}",
            "check the disk and the permissions, then try again",
        ) from error


def _torn(source: Source, path: Path, error: Exception) -> SourceError:
    return SourceError(
        f"source {source.name}: {path} is torn, it cannot be read to its end: {_first(error)}",
        "restore the file from its origin",
    )


def _media_items(found: Found) -> Items:
    """A record for each medium: its name, and its folder as the label where there are class folders."""
    for number, name in enumerate(found.media, start=1):
        record: Record = {"file_name": name}
        if found.labelled:
            record["label"] = name.rsplit("/", 1)[0]
        yield f"{found.root.name}#{number} {_short(name)}", record


def _streamed(source: Source, identity: Sequence[str]) -> Reading:
    revision, rows = open_stream(source)
    folder, trusted = _media_folder(source, Path())
    name = f"{source.hub}/{source.split}"

    def items() -> Items:
        return _labelled(name, enumerate(rows(), start=1), identity)

    return Reading(source, (), folder, trusted, f"stream of {name}", revision, items)


def _first(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:300] or type(error).__name__
