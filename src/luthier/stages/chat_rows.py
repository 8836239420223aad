"""Which rows of the run's table a chat stage learns from and is scored on, encoded once and kept in the run folder.

A short run on a large table encodes only the rows that it will see: the first of the mixture's order.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from luthier.console import progress, say
from luthier.data.building.mixture import Mixture, read_mixture
from luthier.data.building.rows import TableRow, from_record
from luthier.data.table import iter_batches, read_manifest
from luthier.errors import DataError
from luthier.files import sha256_bytes
from luthier.models.chat_batches import ChatFeed, Layout
from luthier.models.lessons import Encoder, Encoding, Lessons, write_lessons
from luthier.models.senses.supply import Supply
from luthier.recipe import Recipe
from luthier.schema import canonical

Numbers = NDArray[np.int64]
_SPARE = 1.1
"""Rows that a short run encodes beyond those it needs, as some leave."""
_FORM = 3
"""Of encoded rows on disk; other forms are made again."""


@dataclass(frozen=True)
class ChatRows:
    """The rows of a table, before they are encoded for one stage."""

    table: Path
    tokens: Path
    """Where encoded rows are kept."""
    recipe: Recipe
    encoder: Encoder
    tokenizer_digest: str
    supply: Supply | None = None
    """Of a base that sees or hears."""

    @cached_property
    def _columns(self) -> tuple[NDArray[np.str_], NDArray[np.str_]]:
        """Split and source of every row."""
        batches = list(iter_batches(self.table, ["split", "source"]))
        split, source = (
            np.concatenate([batch.column(name).to_numpy(zero_copy_only=False).astype(str) for batch in batches])
            for name in ("split", "source")
        )
        return split, source

    def numbers(self, split: str, sources: Sequence[str]) -> Numbers:
        """Places in the table of the rows of a split and some sources."""
        splits, origins = self._columns
        return np.flatnonzero((splits == split) & np.isin(origins, list(sources)))

    def lessons(self, label: str, numbers: Numbers) -> Lessons:
        """These rows encoded, in the order of the table; read back where that was done before."""
        what = [read_manifest(self.table)["digest"], self.tokenizer_digest, self.encoder.max_tokens]
        what += [self.encoder.truncation, sha256_bytes(np.sort(numbers).tobytes())]
        what += [_FORM, "" if self.encoder.speller is None else self.encoder.speller.digest()]
        folder = self.tokens / f"{label}-{sha256_bytes(canonical(what).encode())[:16]}"
        found = Lessons.read(folder)
        if found is None:
            if folder.exists():
                say(f"{folder}: is not whole, and made again")
                shutil.rmtree(folder)
            shown = progress(rows_at(self.table, numbers), f"encoding {label}", len(numbers))
            found = write_lessons(folder, lambda: shown, self.encoder, Encoding())
        return found

    def feed(self, layout: Layout) -> tuple[Lessons, ChatFeed]:
        """What the stage trains on, and the steps made of it."""
        mixture = read_mixture(self.table)
        if mixture is None:
            raise DataError(f"{self.table}: has no mixture of training rows", "build it with task.kind: chat")
        train, seed = self.recipe.train, self.recipe.seed
        mine = np.isin(self._columns[1], list(self.recipe.data.train))
        first = _order(mixture, mine, 0)
        if not len(first):
            raise DataError("data.train: no training row is left", "look at the ledger: luthier data show")
        wanted = train.max_steps * train.batch_size
        count = int(wanted * _SPARE) + 64
        while wanted > 0 and count < len(first):
            lessons = self.lessons("train", np.unique(first[:count]))
            order = _present(_places(lessons), first[:count])[:wanted]
            if len(order) == wanted:
                always = partial(_always, order)
                return lessons, ChatFeed(lessons, always, self._laid(lessons, layout), seed, len(first), self.supply)
            count *= 2
        lessons = self.lessons("train", np.flatnonzero(mine & (self._columns[0] == "train")))
        place = _places(lessons)
        order_of = lambda epoch: _present(place, _order(mixture, mine, epoch))
        return lessons, ChatFeed(lessons, order_of, self._laid(lessons, layout), seed, supply=self.supply)

    def _laid(self, lessons: Lessons, layout: Layout) -> Layout:
        found = layout.suited(lessons, self.supply)
        if found != layout:
            say("train.packing: pictures of this base are read both ways, so rows are padded and not packed")
        return found


def rows_at(table: Path, numbers: Numbers) -> Iterator[tuple[int, TableRow]]:
    """The rows at some places of a table, in its order; no other row is made."""
    wanted, begin = np.sort(numbers), 0
    for batch in iter_batches(table):
        first, last = np.searchsorted(wanted, [begin, begin + batch.num_rows])
        here = wanted[first:last]
        yield from zip(here.tolist(), map(from_record, batch.take(here - begin).to_pylist()), strict=True)
        begin += batch.num_rows


def _always(order: Numbers, _epoch: int) -> Numbers:
    return order


def _order(mixture: Mixture, mine: NDArray[np.bool_], epoch: int) -> Numbers:
    """The mixture's order of an epoch, of the stage's own sources."""
    found = mixture.order(epoch)
    kept: Numbers = found[mine[found]]
    return kept


def _places(lessons: Lessons) -> Numbers:
    """Row number of the table -> lesson, or -1."""
    place = np.full(int(lessons.numbers.max()) + 2, -1, dtype=np.int64)
    place[lessons.numbers] = np.arange(len(lessons))
    return place


def _present(place: Numbers, rows: Numbers) -> Numbers:
    """The lessons of rows; rows that were not encoded are left out."""
    found = place[np.minimum(rows, len(place) - 1)]  # the last place belongs to no row
    kept: Numbers = found[found >= 0]
    return kept
