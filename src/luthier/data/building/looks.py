"""The looks for duplicates over the rows of some stages: exact, near, semantic, pictures, recordings.

Knows what each look needs of rows; refuses to know how it compares, and what becomes of what it finds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from luthier.console import progress
from luthier.data import dedupe
from luthier.data.alike.contentkey import normal_key
from luthier.data.alike.turnwise import LEAST, same_talk
from luthier.data.building.allrows import Indices, Rows
from luthier.data.building.request import TableRequest
from luthier.data.building.rows import to_messages
from luthier.data.building.stage import MEDIA
from luthier.recipe_data import Duplicates

_PART = 512
Alive = NDArray[np.bool_]
Look = Callable[[Rows, Sequence[int], Indices, Alive, TableRequest], dedupe.Found]
"""(rows, stages of the scope, their rows' numbers, which of these still stay, settings) -> merges among them."""


def looks_of(settings: Duplicates) -> list[Look]:
    """The looks that a recipe asks for, the cheapest first."""
    found: list[Look] = [exact] if settings.exact else []
    found += [_near] if settings.near else []
    found += [_semantic] if settings.semantic else []
    found += [_images] if settings.images >= 0 else []
    found += [_audio] if settings.audio else []
    return found


def exact(rows: Rows, scope: Sequence[int], order: Indices, alive: Alive, request: TableRequest) -> dedupe.Found:
    """Rows of equal content among those that are alive."""
    parts = [_halves(batch.column(0)) for number in scope for batch in rows.stages[number].batches(["key"])]

    def keys_of(numbers: Indices) -> list[bytes]:
        content = zip(*(rows.values(name, order[numbers]) for name in ("messages", "target")), strict=True)
        return [normal_key(to_messages(messages), target.encode()) for messages, target in content]

    chosen = np.flatnonzero(alive)
    quick, ids = np.concatenate(parts)[chosen], rows.ids()[order][chosen]
    found = dedupe.exact(quick, ids, lambda numbers: keys_of(chosen[numbers]))
    found.merges = [replace(m, index=int(chosen[m.index]), into=int(chosen[m.into])) for m in found.merges]
    return found


def _halves(keys: pa.FixedSizeBinaryArray) -> NDArray[np.uint64]:
    """The first 8 bytes of each key: enough to find what is worth a look."""
    found = np.frombuffer(keys.buffers()[1], dtype="<u8").reshape(-1, 2)[keys.offset : keys.offset + len(keys), 0]
    return found.copy()  # a view would keep the whole batch that was read with it


def _near(rows: Rows, scope: Sequence[int], order: Indices, alive: Alive, request: TableRequest) -> dedupe.Found:
    settings = request.duplicates
    batches = progress(rows.texts(scope), "looking for near duplicates")
    with tempfile.TemporaryDirectory(prefix="luthier-near-") as folder:
        return dedupe.near(
            batches,
            settings.near,
            settings.shingle,
            lambda n: rows.texts_of(order[n]),
            Path(folder),
            alive,
            lambda pairs: _agree(rows, order[pairs], LEAST),
        )


def _semantic(rows: Rows, scope: Sequence[int], order: Indices, alive: Alive, request: TableRequest) -> dedupe.Found:
    from luthier.data.alike.semantic import load_model, semantic

    settings = request.duplicates
    batches = progress(rows.texts(scope), "looking for texts of one meaning")
    model = load_model(Path(settings.semantic_model).expanduser())
    found = semantic(batches, settings.semantic, model, lambda n: rows.texts_of(order[n]), alive)
    if found.merges:
        pairs = np.array([(merge.into, merge.index) for merge in found.merges], dtype=np.int64)
        fits = _agree(rows, order[pairs], 0.0)
        found.refused = len(fits) - int(fits.sum())
        found.merges = [merge for merge, fit in zip(found.merges, fits, strict=True) if fit]
    return found


def _agree(rows: Rows, pairs: Indices, least: float) -> NDArray[np.bool_]:
    """Whether both rows of each pair have one target and agree turn by turn."""
    found = np.zeros(len(pairs), dtype=bool)
    for at in range(0, len(pairs), _PART):
        part = pairs[at : at + _PART]
        sides = [list(zip(rows.values("target", side), rows.values("messages", side), strict=True)) for side in part.T]
        found[at : at + len(part)] = [
            one[0] == other[0] and same_talk(to_messages(one[1]), to_messages(other[1]), least)
            for one, other in zip(*sides, strict=True)
        ]
    return found


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
