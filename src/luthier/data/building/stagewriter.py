"""Writes the rows of a stage in batches, their media once each, and an event for each record dropped or changed.

Knows columns and events; refuses to know readers and steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

from luthier.data.alike.contentkey import quick_key
from luthier.data.building.rows import STAGE_SCHEMA, encode, group_of
from luthier.data.building.stage import EVENTS, MEDIA, ROWS
from luthier.data.ledger import drop_event, event
from luthier.schema import Draft, Drop, Row, canonical

_BATCH_ROWS, _BATCH_BYTES = 1024, 16 * 2**20
Changes = dict[str, str]
"""What a step did to a row: `step`, and `detail` for a person."""


@dataclass
class StageWriter:
    """Writes rows in batches, media once each, events as they come."""

    place: Path
    source: str
    seen: int = 0
    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    batches: list[int] = field(default_factory=list)
    first_drop: str = ""

    def __enter__(self) -> StageWriter:
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
