"""Writes a table's parquet shards in their final order, with memory for one shard at a time.

Knows stages, ranks and Arrow; refuses to know why a row stays or where it ranks. Rows are scattered to one spill file
per shard and each shard is then put in order, so a shuffle over all rows never holds them all.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from luthier.data.building.layout import SPLITS, Layout
from luthier.data.building.rows import SCHEMA
from luthier.data.building.stage import MEDIA, ROWS, Stage

SHARD_BYTES = 64 * 2**20
"""Bytes of messages in a shard, about; a shard in work takes three times as much memory."""
_LEAST_ROWS, _MOST_ROWS = 256, 100_000
_MOST_SHARDS = 500  # each is an open file while rows are scattered
_CODED = ["split", "source", "license", "attribution"]
_DIGESTED = ("id", "split", "group", "source", "seconds", "aux", "weight", "repeats")
_SPILL = pa.schema([*SCHEMA, ("rank", pa.int64())])


@dataclass
class _Spill:
    """One shard's rows as they come, in memory for a single shard and in a file otherwise."""

    path: Path | None
    batches: list[pa.RecordBatch] = field(default_factory=list)
    writer: Any = None

    def add(self, batch: pa.RecordBatch) -> None:
        if self.path is None:
            self.batches.append(batch)
            return
        if self.writer is None:
            self.writer = pa.ipc.new_stream(str(self.path), _SPILL)
        self.writer.write_batch(batch)

    def table(self) -> pa.Table:
        """The shard in its order; the spill file is removed."""
        if self.path is None:
            found = pa.Table.from_batches(self.batches, _SPILL)
            self.batches = []
        else:
            self.writer.close()
            with pa.OSFile(str(self.path)) as stream, pa.ipc.open_stream(stream) as reader:
                found = reader.read_all()
            self.path.unlink()
        order = np.argsort(found.column("rank").to_numpy())
        return found.drop_columns(["rank"]).take(pa.array(order))


def write_shards(layout: Layout, place: Path) -> dict[str, Any]:
    """Write rows-*.parquet and media/ into `place`. Returns rows and digest for the manifest."""
    (place / MEDIA).mkdir()
    total = layout.rows
    size = sum((stage.folder / ROWS).stat().st_size for stage in layout.stages)
    stored = max(1, len(layout.rank))
    per_shard = int(np.clip(SHARD_BYTES * stored // max(1, size), _LEAST_ROWS, _MOST_ROWS))
    per_shard = max(per_shard, -(-total // _MOST_SHARDS))
    count = max(1, -(-total // per_shard))
    spills = [_Spill(place / f".spill-{number}" if count > 1 else None) for number in range(count)]
    start = 0
    for stage in layout.stages:
        start = _scatter(stage, layout, start, per_shard, spills, place / MEDIA)
    digest = hashlib.sha256()
    for number, spill in enumerate(spills):
        path = place / f"rows-{number:05d}.parquet"
        table = spill.table()
        pq.write_table(
            table, path, compression="zstd", use_dictionary=_CODED, write_statistics=_CODED, row_group_size=8192
        )
        _feed(digest, table)
        del table  # before the next one is put in order beside it
    return {"rows": total, "digest": digest.hexdigest()}


def _scatter(stage: Stage, layout: Layout, start: int, per_shard: int, spills: Sequence[_Spill], media: Path) -> int:
    """Send a stage's rows to their shards. Returns where the next stage's rows begin in the layout's arrays."""
    has_media = any((stage.folder / MEDIA).iterdir())
    for batch in stage.batches():
        span = slice(start, start + batch.num_rows)
        start = span.stop
        rank = layout.rank[span]
        kept = np.flatnonzero(rank >= 0)
        shard = rank[kept] // per_shard
        for number in np.unique(shard):
            chosen = kept[shard == number]
            rows = batch.take(pa.array(chosen)) if len(chosen) < batch.num_rows else batch
            if has_media:
                _link_media(rows, stage.folder / MEDIA, media)
            spills[number].add(_final(rows, stage, layout, span, chosen))
    return start


def _final(
    rows: pa.RecordBatch, stage: Stage, layout: Layout, span: slice, chosen: NDArray[np.int64]
) -> pa.RecordBatch:
    """A stage's columns with those that the table adds."""
    count = rows.num_rows
    added = {
        "split": pa.array([SPLITS[code] for code in layout.split[span][chosen]], pa.string()),
        "source": pa.repeat(pa.scalar(stage.source), count),
        "license": pa.repeat(pa.scalar(stage.about["license"] or None, pa.string()), count),
        "attribution": pa.repeat(pa.scalar(stage.about["attribution"] or None, pa.string()), count),
        "parents": pa.array([[]] * count, pa.list_(pa.string())),
        "weight": pa.array(layout.weight[span][chosen]),
        "repeats": pa.array(layout.repeats[span][chosen]),
        "rank": pa.array(layout.rank[span][chosen]),
    }
    columns = [added[name] if name in added else rows.column(name) for name in _SPILL.names]
    return pa.record_batch(columns, schema=_SPILL)


def references(batch: pa.RecordBatch) -> Iterator[str]:
    """The media references of rows."""
    for turns in map(orjson.loads, batch.column("messages").cast(pa.large_binary()).to_pylist()):
        for turn in turns:
            yield from (part["media"] for part in turn["content"] if "media" in part)


def _link_media(batch: pa.RecordBatch, before: Path, after: Path) -> None:
    for name in {reference.removeprefix("sha256:") for reference in references(batch)}:
        if (after / name).exists():
            continue
        try:
            os.link(before / name, after / name)
        except OSError:  # another file system
            shutil.copyfile(before / name, after / name)


def _feed(digest: Any, table: pa.Table) -> None:
    """The table's digest covers ids (and by them all content), splits, groups, sources and what is carried along."""
    columns = [table.column(name).to_pylist() for name in _DIGESTED]
    digest.update("".join(f"{row!r}\n" for row in zip(*columns, strict=True)).encode())


def digest_of(tables: Sequence[pa.Table]) -> str:
    """The digest of shards as they are read back."""
    digest = hashlib.sha256()
    for table in tables:
        _feed(digest, table)
    return digest.hexdigest()
