"""Takes one source to a stage: records to rows, rows through the steps, what is left into an Arrow file.

Knows readers, formats and steps by their interfaces; refuses to know other sources, splits and duplicates. Rows stream:
what is in memory does not grow with their number. Every record ends in the stage or, with its reason, in its ledger;
of a text that is cut into passages, every passage does.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from luthier import files
from luthier.console import progress, say
from luthier.data.building.context import Adapter, Context, Record
from luthier.data.building.request import TableRequest
from luthier.data.building.rows import encode
from luthier.data.building.stage import Stage
from luthier.data.building.stagecache import TOUCHED, StageCache, stage_key, touch
from luthier.data.building.stagewriter import Changes, StageWriter
from luthier.data.formats import adapter, detect
from luthier.data.readers import Broken, Reading, columns_seen, open_source, peek
from luthier.data.shapes.passages import passages
from luthier.errors import DataError, SourceError
from luthier.recipe_data import Source
from luthier.recipe_describe import DescribeSettings
from luthier.schema import Draft, Drop, Row, canonical

WORKERS = 2  # sound and pictures are decoded outside the interpreter's lock
_AHEAD = 16  # recordings in memory at once
_MEDIA_FORMATS = ("graded", "image_caption", "described")
Outcome = Draft | Drop


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
    if chosen == "auto" and request.describe is not None:
        chosen = "described"
    elif chosen == "auto":
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
        request.describe or DescribeSettings(),
    )
    outcomes = _outcomes(reading, adapter(chosen, context), pooled=chosen in _MEDIA_FORMATS)
    records = 0
    with StageWriter(place, source.name) as writer, _few_collections():
        for outcome in progress(outcomes, f"reading {source.name}"):
            records += 1
            if isinstance(outcome, Drop):
                writer.seen += 1
                writer.drop(outcome)
                continue
            for draft in passages(outcome, source.passage_words):
                writer.seen += 1
                _through_steps(draft, request, writer)
    if writer.seen > records:
        say(f"{source.name}: {records:,} records, the long texts among them cut into passages: {writer.seen:,} in all")
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
        "hub": "" if source.path else source.hub,
        "license": source.license,
        "attribution": source.attribution,
        "records": records,
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

    def one(origin: str, record: Record | Broken) -> Outcome:
        if isinstance(record, Broken):
            return Drop(source, origin, record.reason, record.detail)
        return adapt(origin, record)

    if not pooled:
        for origin, record in records:
            yield one(origin, record)
        return
    waiting: deque[Future[Outcome]] = deque()
    with ThreadPoolExecutor(WORKERS) as pool:
        for origin, record in records:
            waiting.append(pool.submit(one, origin, record))
            if len(waiting) >= _AHEAD:
                yield waiting.popleft().result()
        for future in waiting:
            yield future.result()


def _through_steps(draft: Draft, request: TableRequest, writer: StageWriter) -> None:
    row, changes = draft.row, list[Changes]()
    for step in request.steps:
        after = step.apply(row)
        if after is row or after == row:
            continue
        where = row.provenance
        if isinstance(after, Drop):
            own = Drop(where.source, where.origin, after.reason, after.detail)
            writer.drop(own, step.name, _identity(row), changes)
            return
        if after.provenance != where or after.split != row.split:  # where a row is from is not a step's to say
            after = replace(after, provenance=where, split=row.split)
            if after == row:
                continue
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


def _none_left(source: str, writer: StageWriter) -> DataError:
    if not writer.seen:
        return DataError(f"source {source}: it has no records at all", "name a file or a split that has rows")
    why = ", ".join(f"{count:,} {reason}" for reason, count in writer.dropped.most_common())
    return DataError(
        f"source {source}: none of its {writer.seen} records can be used: {why}; the first: {writer.first_drop}",
        "check the recipe's data.columns, data.steps, data.limits and scale against the source",
    )
