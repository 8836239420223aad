"""Decides over all stages which rows stand for which: exact, near, semantic, then media; the first row stays.

Knows stages and the order of the looks; refuses to know how a look works (`dedupe`, `semantic`, `likeness`). Held-out
rows come first, so a training row that a held-out source also has is the one that gives way.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from luthier import files
from luthier.console import progress
from luthier.data import dedupe
from luthier.data.alike.contentkey import normal_key
from luthier.data.building.request import TableRequest
from luthier.data.building.rows import texts, to_messages
from luthier.data.building.stage import MEDIA, Stage
from luthier.data.building.stagecache import StageCache, stage_key

HOWS = ("", "exact", "near", "semantic", "image", "audio")
_FILE, _SUMMARY = "decisions.arrow", "summary.json"
SHOWN = 20
"""Pairs of siblings that the manifest shows."""
Indices = NDArray[np.int64]
Alive = NDArray[np.bool_]
Look = Callable[["Rows", Sequence[int], Indices, Alive, TableRequest], dedupe.Found]
"""(rows, stages of the scope, their rows' numbers, which of these still stay, settings) -> merges among them."""


@dataclass
class Decisions:
    """For each row of the stages, one stage after another: the row that stands for it, or -1 where it stays."""

    into: Indices
    how: NDArray[np.uint8]
    similarity: NDArray[np.float64]
    summary: dict[str, Any] = field(default_factory=dict)
    """Merges by kind, sibling pairs (counted, some shown), notes for a person."""

    @classmethod
    def none(cls, rows: int) -> Decisions:
        """Every row stays."""
        return cls(np.full(rows, -1, dtype=np.int64), np.zeros(rows, dtype=np.uint8), np.zeros(rows))

    def how_of(self, index: int) -> str:
        return HOWS[int(self.how[index])]


def decide(stages: Sequence[Stage], request: TableRequest, cache: StageCache) -> Decisions:
    """Look for duplicates as `request.duplicates` says; an earlier decision over the same stages is used again."""
    key = stage_key(
        {
            "decisions": [[stage.key, stage.split] for stage in stages],
            "duplicates": asdict(request.duplicates),
            "per_source": request.per_source,
        }
    )
    folder = cache.find(key)
    if folder is None:
        found = _look(stages, request)
        with cache.make(key, {}) as place:
            _write(found, place)
        return found
    return _read(folder)


class Rows:
    """The rows of all stages by number, one stage after another; texts are read again when they are asked for."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = stages
        self.starts = np.concatenate([[0], np.cumsum([stage.rows for stage in stages])]).astype(np.int64)
        self.total = int(self.starts[-1])

    def span(self, stage: int) -> Indices:
        """The numbers of a stage's rows."""
        return np.arange(self.starts[stage], self.starts[stage + 1])

    def column(self, name: str) -> list[Any]:
        """A small column of all rows."""
        return [
            value for stage in self.stages for batch in stage.batches([name]) for value in batch.column(0).to_pylist()
        ]

    def texts(self, stages: Sequence[int], with_media: bool = False) -> Iterator[list[str]]:
        """What is said in the rows of some stages, a batch at a time; rows with media read as "" unless asked for."""
        for number in stages:
            stage = self.stages[number]
            media = not with_media and any((stage.folder / MEDIA).iterdir())
            for batch in stage.batches(["messages"]):
                found = texts(batch.column(0))
                if media:
                    held = pc.match_substring(batch.column(0), '"media":').to_pylist()
                    found = ["" if has else text for has, text in zip(held, found, strict=True)]
                yield found

    def ids(self) -> NDArray[np.uint64]:
        """The id of every row as a number."""
        hexes = ("".join(batch.column(0).to_pylist()) for stage in self.stages for batch in stage.batches(["id"]))
        return np.concatenate([np.frombuffer(bytes.fromhex(part), dtype=">u8") for part in hexes])

    def values(self, column: str, numbers: Indices) -> list[str]:
        """A column's values of some rows, in the order that is asked for."""
        found: dict[int, str] = {}
        for stage, start in zip(self.stages, self.starts.tolist(), strict=False):
            wanted = np.unique(numbers[(numbers >= start) & (numbers < start + stage.rows)]) - start
            found |= {start + row: value for row, value in stage.pick(column, wanted)}
        return [found[number] for number in numbers.tolist()]

    def texts_of(self, numbers: Indices) -> list[str]:
        """What is said in some rows."""
        return texts(pa.array(self.values("messages", numbers), pa.large_string()))


def _look(stages: Sequence[Stage], request: TableRequest) -> Decisions:
    rows, settings = Rows(stages), request.duplicates
    decisions = Decisions.none(rows.total)
    held_first = sorted(range(len(stages)), key=lambda number: stages[number].split != "test")
    scopes = [[number] for number in held_first] if request.per_source else [held_first]
    looks: list[Look] = [_exact] if settings.exact else []
    looks += [_near] if settings.near else []
    looks += [_semantic] if settings.semantic else []
    looks += [_images] if settings.images >= 0 else []
    looks += [_audio] if settings.audio else []
    shown: list[list[str]] = []
    notes: list[str] = []
    counted, conflicts = 0, 0
    for scope in scopes:
        order = np.concatenate([rows.span(number) for number in scope])
        for look in looks:
            found = look(rows, scope, order, decisions.into[order] < 0, request)
            conflicts += _take(found, order, rows, decisions)
            counted += found.sibling_count
            notes += found.notes
            shown += [rows.texts_of(order[list(pair)]) for pair in found.siblings[: SHOWN - len(shown)]]
    if counted:
        notes.append(f"{counted:,} pairs of rows are equal but for names and numbers: not merged")
    if conflicts:
        notes.append(
            f"{conflicts:,} rows are like another one and have another target or text: not merged, look at them"
        )
    merged = Counter(HOWS[code] for code in decisions.how[decisions.into >= 0].tolist())
    decisions.summary = {
        "merged": dict(merged),
        "siblings": counted,
        "sibling_pairs": shown,
        "conflicts": conflicts,
        "notes": notes,
    }
    return decisions


def _take(found: dedupe.Found, order: Indices, rows: Rows, decisions: Decisions) -> int:
    """Enter merges, in numbers of a scope, into the decisions. Returns how many are left out for another target."""
    if not found.merges:
        return 0
    targets, conflicts = rows.column("target") if found.merges[0].how != "exact" else [], 0
    for merge in found.merges:
        index, into = int(order[merge.index]), int(order[merge.into])
        if targets and targets[index] != targets[into]:
            conflicts += 1
        else:
            decisions.into[index], decisions.how[index] = into, HOWS.index(merge.how)
            decisions.similarity[index] = merge.similarity
    # What was merged into a row that is now merged itself goes where that row went.
    for index in order[decisions.into[order] >= 0].tolist():
        while decisions.into[decisions.into[index]] >= 0:
            decisions.into[index] = decisions.into[decisions.into[index]]
    return conflicts


def _exact(rows: Rows, scope: Sequence[int], order: Indices, alive: Alive, request: TableRequest) -> dedupe.Found:
    parts = [_halves(batch.column(0)) for number in scope for batch in rows.stages[number].batches(["key"])]

    def keys_of(numbers: Indices) -> list[bytes]:
        content = zip(*(rows.values(name, order[numbers]) for name in ("messages", "target")), strict=True)
        return [normal_key(to_messages(messages), target.encode()) for messages, target in content]

    return dedupe.exact(np.concatenate(parts), rows.ids()[order], keys_of)


def _halves(keys: pa.FixedSizeBinaryArray) -> NDArray[np.uint64]:
    """The first 8 bytes of each key: enough to find what is worth a look."""
    found = np.frombuffer(keys.buffers()[1], dtype="<u8").reshape(-1, 2)[keys.offset : keys.offset + len(keys), 0]
    return found.copy()  # a view would keep the whole batch that was read with it


def _near(rows: Rows, scope: Sequence[int], order: Indices, alive: Alive, request: TableRequest) -> dedupe.Found:
    settings = request.duplicates
    batches = progress(rows.texts(scope), "looking for near duplicates")
    with tempfile.TemporaryDirectory(prefix="luthier-near-") as folder:
        return dedupe.near(
            batches, settings.near, settings.shingle, lambda n: rows.texts_of(order[n]), Path(folder), alive
        )


def _semantic(rows: Rows, scope: Sequence[int], order: Indices, alive: Alive, request: TableRequest) -> dedupe.Found:
    from luthier.data.alike.semantic import load_model, semantic

    settings = request.duplicates
    batches = progress(rows.texts(scope), "looking for texts of one meaning")
    model = load_model(Path(settings.semantic_model).expanduser())
    return semantic(batches, settings.semantic, model, lambda n: rows.texts_of(order[n]), alive)


def _images(rows: Rows, scope: Sequence[int], order: Indices, alive: Alive, request: TableRequest) -> dedupe.Found:
    from luthier.data.alike.likeness import picture_print, same_pictures
    from luthier.data.pictures import load_picture

    items = [item if live else None for item, live in zip(_media(rows, scope, "image"), alive, strict=True)]
    read = progress(items, "looking for pictures that are alike")
    prints = [picture_print(load_picture(item.path.read_bytes(), request.limits)) if item else None for item in read]
    return same_pictures(prints, request.duplicates.images, [item.beside if item else None for item in items])


def _audio(rows: Rows, scope: Sequence[int], order: Indices, alive: Alive, request: TableRequest) -> dedupe.Found:
    from luthier.data.alike.likeness import same_sounds, sound_print
    from luthier.data.media import load_audio

    items = [item if live else None for item, live in zip(_media(rows, scope, "audio"), alive, strict=True)]
    read = progress(items, "looking for recordings that are alike")
    prints = [sound_print(load_audio(item.path.read_bytes(), request.limits)) if item else None for item in read]
    return same_sounds(prints, request.duplicates.audio, [item.beside if item else None for item in items])


class _Medium(NamedTuple):
    """A row's only picture or recording, and a key of what stands beside it: only rows with equal keys can be one."""

    path: Path
    beside: bytes


def _media(rows: Rows, scope: Sequence[int], kind: str) -> Iterator[_Medium | None]:
    """The medium of each row of the scope; None for a row that has none of the kind, or several."""
    for number in scope:
        folder = rows.stages[number].folder / MEDIA
        for batch in rows.stages[number].batches(["messages", "target"]):
            for text, target in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                messages = to_messages(text) if '"media":' in text else ()
                media = [part for message in messages for part in message.content if part.media]
                if len(media) != 1 or media[0].type != kind or not media[0].media:
                    yield None
                    continue
                found = media[0].media
                beside = to_messages(text.replace(found, ""))
                yield _Medium(folder / found.removeprefix("sha256:"), normal_key(beside, target.encode()))


def _write(decisions: Decisions, place: Path) -> None:
    columns = {
        "into": pa.array(decisions.into),
        "how": pa.array(decisions.how),
        "similarity": pa.array(decisions.similarity),
    }
    batch = pa.record_batch(columns)
    with pa.OSFile(str(place / _FILE), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as file:
        file.write_batch(batch)
    (place / _SUMMARY).write_bytes(orjson.dumps(decisions.summary))


def _read(folder: Path) -> Decisions:
    with pa.OSFile(str(folder / _FILE)) as stream, pa.ipc.open_file(stream) as file:
        found = file.read_all()
    into, how, similarity = (found.column(name).to_numpy() for name in ("into", "how", "similarity"))
    return Decisions(into, how, similarity, files.read_json(folder / _SUMMARY))
