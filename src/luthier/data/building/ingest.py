"""Takes one source to a stage: records to rows, rows through the steps, what is left into an Arrow file.

Knows readers, formats and steps by their interfaces; refuses to know other sources, splits and duplicates. Rows stream:
what is in memory does not grow with their number. Every record ends in the stage or, with its reason, in its ledger.
"""

from __future__ import annotations

import gc
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from luthier import files
from luthier.console import progress, say
from luthier.data.alike.contentkey import quick_key
from luthier.data.building.context import Adapter, Context, Record
from luthier.data.building.request import TableRequest
from luthier.data.building.rows import STAGE_SCHEMA, encode, group_of
from luthier.data.building.stagecache import TOUCHED, StageCache, stage_key, touch
from luthier.data.formats import adapter, detect
from luthier.data.ledger import drop_event, event
from luthier.data.readers import Broken, Reading, columns_seen, open_source, peek
from luthier.errors import DataError, SourceError
from luthier.recipe import Source
from luthier.schema import Draft, Drop, Row, canonical

ROWS, EVENTS, MEDIA = "rows.arrow", "events.jsonl", "media"
WORKERS = 2  # sound and pictures are decoded outside the interpreter's lock
_AHEAD = 16  # recordings in memory at once
_BATCH_ROWS, _BATCH_BYTES = 1024, 16 * 2**20
_MEDIA_FORMATS = ("graded", "image_caption")
Outcome = tuple[str, Draft | Drop]
Changes = dict[str, str]
"""What a step did to a row: `step`, and `detail` for a person."""


@dataclass(frozen=True)
class Stage:
    """A source's rows on disk. `about` is what the table's manifest says of the source."""

    key: str
    """Names what it was made from, the media that were read from beside a table included."""
    folder: Path
    source: str
    split: str
    about: dict[str, Any]
    reused: bool = False

    @property
    def rows(self) -> int:
        return int(self.about["rows"])

    @property
    def seen(self) -> int:
        return int(self.about["in"])

    @property
    def dropped(self) -> Counter[str]:
        return Counter(self.about["dropped"])

    def batches(self, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows in their order, a batch at a time."""
        chosen = [STAGE_SCHEMA.get_field_index(name) for name in columns or STAGE_SCHEMA.names]
        options = pa.ipc.IpcReadOptions(included_fields=chosen)
        with pa.OSFile(str(self.folder / ROWS)) as stream, pa.ipc.open_file(stream, options=options) as file:
            for number in range(file.num_record_batches):
                yield file.get_batch(number)

    def pick(self, column: str, rows: NDArray[np.int64]) -> Iterator[tuple[int, Any]]:
        """(row, value) of a column for some ascending rows; only the batches that hold them are read."""
        if not len(rows):
            return
        options = pa.ipc.IpcReadOptions(included_fields=[STAGE_SCHEMA.get_field_index(column)])
        bounds = np.cumsum([0, *self.about["batches"]])
        with pa.OSFile(str(self.folder / ROWS)) as stream, pa.ipc.open_file(stream, options=options) as file:
            for number in np.unique(np.searchsorted(bounds, rows, side="right") - 1).tolist():
                own = rows[(rows >= bounds[number]) & (rows < bounds[number + 1])]
                values = file.get_batch(number).column(0).take(pa.array(own - bounds[number])).to_pylist()
                yield from zip(own.tolist(), values, strict=True)


def ingest(source: Source, split: str, request: TableRequest, cache: StageCache) -> Stage:
    """The stage of a source, read now or found in the cache.

    Raises SourceError for a source that cannot be read, DataError where none of its records can be used.
    """
    reading = open_source(source, request.columns.id) if request.graded else open_source(source)
    before, hashes = touch(reading.files), _hashes(reading)
    # Names of media mean files beside the table, so the same bytes in another folder are another source.
    folder = "" if reading.revision else str(reading.folder.resolve())
    made_from = {"files": hashes, "revision": reading.revision, "folder": folder}
    key = stage_key({**request.reading_key(source, split), **made_from})
    kept = cache.find(key)
    if kept is None:
        about: dict[str, Any] = {}
        with cache.make(key, about) as place:
            about |= _read(reading, split, request, place)
            about |= {"files_read": hashes}
            if touch(reading.files) != before:
                raise SourceError(f"source {source.name}: a file of it changed while it was read", "build again")
        kept = cache.root / key
        return _stage(key, kept, source.name, split)
    found = _stage(key, kept, source.name, split, reused=True)
    say(f"{source.name}: {found.about['sniffed']}, unchanged: {found.rows:,} rows kept from before")
    return found


def _hashes(reading: Reading) -> dict[str, str]:
    """sha256 of each file that is read; of a folder of media alone, of its listing (its files are watched)."""
    if not reading.files and not reading.revision:
        listing = touch(path for path in reading.folder.rglob("*") if path.is_file())
        return {"listing": files.sha256_bytes(canonical(listing).encode())}
    names = [path.name for path in reading.files]
    return {
        name if names.count(name) == 1 else f"{path.parent.name}/{name}": files.sha256_file(path)
        for name, path in zip(names, reading.files, strict=True)
    }


def _stage(key: str, folder: Path, name: str, split: str, reused: bool = False) -> Stage:
    about = files.read_json(folder / files.MANIFEST)
    about.pop("files", None)
    media = folder / TOUCHED
    if media.is_file():
        key = f"{key}-{files.sha256_file(media)[:16]}"
    return Stage(key, folder, name, split, about, reused)


def _read(reading: Reading, split: str, request: TableRequest, place: Path) -> dict[str, Any]:
    """Fill a stage's folder. Returns what its manifest says."""
    source, first = reading.source, peek(reading)
    chosen = source.format
    if chosen == "auto":
        chosen = "graded" if request.graded else _detected(reading, first) if first else "messages"
    say(f"{source.name}: {reading.sniffed}, read as {chosen}")
    context = Context(
        source,
        split,
        reading.folder,
        reading.trusted,
        columns_seen(first),
        request.columns,
        request.scale,
        request.limits,
    )
    outcomes = _outcomes(reading, adapter(chosen, context), pooled=chosen in _MEDIA_FORMATS)
    with _Writer(place, source.name) as writer, _few_collections():
        for origin, outcome in progress(outcomes, f"reading {source.name}"):
            writer.seen += 1
            if isinstance(outcome, Drop):
                writer.drop(outcome)
            else:
                _through_steps(origin, outcome, request, writer)
    if not writer.rows:
        raise _none_left(source.name, writer)
    touched = touch(context.touched)
    if touched:
        (place / TOUCHED).write_text(canonical(touched), encoding="utf-8")
    return {
        "source": source.name,
        "format": chosen,
        "sniffed": reading.sniffed,
        "revision": reading.revision,
        "hub": source.hub,
        "license": source.license,
        "attribution": source.attribution,
        "in": writer.seen,
        "rows": writer.rows,
        "batches": writer.batches,
        "changed": dict(writer.changed),
        "dropped": dict(writer.dropped),
    }


def _detected(reading: Reading, first: Sequence[Record]) -> str:
    """The format of a source by its first records. Raises DataError where none fits, with the source and its files."""
    source = reading.source
    try:
        return detect(first, source.columns)
    except DataError as error:
        names = [path.name for path in reading.files[:3]] + ["..."] * (len(reading.files) > 3)
        where = f" ({', '.join(names)})" if names else ""
        raise DataError(
            f"source {source.name}{where}: {error.message}", f"under data.sources.{source.name}, {error.mend}"
        ) from error


@contextmanager
def _few_collections() -> Iterator[None]:
    """Rows are small objects without cycles, by the million: to look for cycles among them only costs time."""
    before = gc.get_threshold()
    gc.set_threshold(200_000, 50, 50)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _outcomes(records: Reading, adapt: Adapter, pooled: bool) -> Iterator[Outcome]:
    """What each record became, in order; media are decoded by a small pool that never runs far ahead."""
    source = records.source.name

    def one(origin: str, record: Record | Broken) -> Draft | Drop:
        if isinstance(record, Broken):
            return Drop(source, origin, record.reason, record.detail)
        return adapt(origin, record)

    if not pooled:
        for origin, record in records:
            yield origin, one(origin, record)
        return
    waiting: deque[tuple[str, Future[Draft | Drop]]] = deque()
    with ThreadPoolExecutor(WORKERS) as pool:
        for origin, record in records:
            waiting.append((origin, pool.submit(one, origin, record)))
            if len(waiting) >= _AHEAD:
                name, future = waiting.popleft()
                yield name, future.result()
        for name, future in waiting:
            yield name, future.result()


def _through_steps(origin: str, draft: Draft, request: TableRequest, writer: _Writer) -> None:
    row, changes = draft.row, list[Changes]()
    for step in request.steps:
        after = step.apply(row)
        if after is row or after == row:
            continue
        if isinstance(after, Drop):
            writer.drop(after, step.name, _identity(row), changes)
            return
        changes.append({"step": step.name, "detail": difference(row, after)})
        row = after
    writer.keep(draft, row, changes)


def _identity(row: Row) -> str:
    """The id of a row that is dropped; "" where it holds half of a surrogate pair, which has no bytes to hash."""
    try:
        return encode(row).id
    except (TypeError, ValueError):
        return ""


def difference(before: Row, after: Row) -> str:
    """What a step changed, for a person: the first changed text around its change, and how many texts changed."""
    old = [part.text or "" for message in before.messages for part in message.content]
    new = [part.text or "" for message in after.messages for part in message.content]
    if len(old) != len(new):
        return f"{len(old)} parts became {len(new)}"
    pairs = [(one, other) for one, other in zip(old, new, strict=True) if one != other]
    if not pairs:
        return "other than the text changed"
    one, other = pairs[0]
    start = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    head = max(0, start - 12)
    more = f" (and {len(pairs) - 1} more texts)" if len(pairs) > 1 else ""
    return f"{one[head : start + 36]!r} became {other[head : start + 36]!r}{more}"


@dataclass
class _Writer:
    """Writes rows in batches, media once each, events as they come."""

    place: Path
    source: str
    seen: int = 0
    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    batches: list[int] = field(default_factory=list)
    first_drop: str = ""

    def __enter__(self) -> _Writer:
        (self.place / MEDIA).mkdir()
        self._events = (self.place / EVENTS).open("wb")
        self._sink = pa.OSFile(str(self.place / ROWS), "wb")
        self._file = pa.ipc.new_file(self._sink, STAGE_SCHEMA)
        self._clear()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self._flush()
        self._file.close()
        self._sink.close()
        self._events.close()

    def _clear(self) -> None:
        self._held: list[tuple[Any, ...]] = []
        self._bytes = 0

    def drop(self, drop: Drop, step: str = "", identity: str = "", changes: Sequence[Changes] = ()) -> None:
        self.dropped[drop.reason] += 1
        self.first_drop = self.first_drop or f"{drop.origin}: {drop.detail}"
        self._events.write(drop_event(drop, step, identity, changes))

    def keep(self, draft: Draft, row: Row, changes: Sequence[Changes]) -> None:
        try:
            identity, messages, target = encode(row)
            if changes:
                (row.group + row.more).encode()
        except (TypeError, ValueError) as error:  # half of a surrogate pair that no adapter or step took out
            self.drop(Drop(self.source, row.provenance.origin, "bad_unicode", str(error)))
            return
        if changes:
            self.changed.update(change["step"] for change in changes)
            about = {"id": identity, "source": self.source, "origin": row.provenance.origin, "changed": changes}
            self._events.write(event(about))
        for reference, data in draft.blobs.items():
            path = self.place / MEDIA / reference.removeprefix("sha256:")
            if not path.exists():
                path.write_bytes(data)
        self._held.append(
            (
                identity,
                messages,
                target,
                group_of(row, identity),
                row.provenance.origin,
                row.more,
                draft.seconds,
                canonical(dict(draft.aux)) if draft.aux else "{}",
                quick_key(row.messages, target),
            )
        )
        self.rows += 1
        self._bytes += len(messages)
        if len(self._held) >= _BATCH_ROWS or self._bytes >= _BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._held:
            columns = zip(*self._held, strict=True)
            arrays = [
                _joined(values) if kind.name == "messages" else pa.array(values, kind.type)
                for values, kind in zip(columns, STAGE_SCHEMA, strict=True)
            ]
            self._file.write_batch(pa.record_batch(arrays, schema=STAGE_SCHEMA))
            self.batches.append(len(arrays[0]))
            self._clear()


def _joined(values: Sequence[bytes]) -> pa.LargeStringArray:
    """JSON that orjson wrote, and that is UTF-8 therefore, as a column: Arrow would look through it once more."""
    offsets = np.cumsum([0, *map(len, values)], dtype=np.int64)
    return pa.LargeStringArray.from_buffers(len(values), pa.py_buffer(offsets), pa.py_buffer(b"".join(values)))


def _none_left(source: str, writer: _Writer) -> DataError:
    if not writer.seen:
        return DataError(f"source {source}: it has no records at all", "name a file or a split that has rows")
    why = ", ".join(f"{count:,} {reason}" for reason, count in writer.dropped.most_common())
    return DataError(
        f"source {source}: none of its {writer.seen} records can be used: {why}; the first: {writer.first_drop}",
        "check the recipe's data.columns, data.steps, data.limits and scale against the source",
    )
