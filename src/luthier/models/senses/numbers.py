"""Media within a line of ids: each vector of a medium has an id of its own, beyond the vocabulary.

Texts that show one medium then begin alike as they do in words, and what was read of a text can be kept by its ids.
Knows which medium an id belongs to; refuses to know vectors and where media come from.

Shapes: L ids of a text, N numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.models.senses.base import Medium, Senses

Ids = NDArray[np.int64]


class Numbers:
    """The numbers of one base's media; `first` is the first id that is no token."""

    def __init__(self, senses: Senses, first: int) -> None:
        self.senses, self.first = senses, first
        self._media: list[Medium] = []
        self._begins: list[int] = []
        """Of each medium the id of its first vector, in rising order."""
        self._known: dict[Medium, int] = {}
        self._next = first

    def write(self, ids: Sequence[int], media: Iterable[Medium]) -> Ids:
        """(L,) spelled ids with numbers where their slots are; media that are not known yet get new ones."""
        ids_L = np.array(ids, dtype=np.int64)
        slots_L = np.isin(ids_L, np.unique(list(self.senses.slot_ids.values())))
        found = [np.arange(self._number(medium), self._number(medium) + medium.slots) for medium in media]
        ids_L[slots_L] = np.concatenate([np.empty(0, np.int64), *found])
        return ids_L

    def read(self, ids: Sequence[int] | Ids) -> tuple[Ids, tuple[Medium, ...]]:
        """What `write` was given: (L,) ids with slots again, and the media whose first vector is among them."""
        ids_L = np.array(ids, dtype=np.int64)
        beyond_L = ids_L >= self.first
        which_N = self.which(ids_L[beyond_L])
        slots = [self.senses.slot_ids[medium.kind] for medium in self._media]
        begins_N = ids_L[beyond_L] == np.asarray(self._begins, dtype=np.int64)[which_N]
        media = tuple(self._media[which] for which in which_N[begins_N])
        ids_L[beyond_L] = np.asarray(slots, dtype=np.int64)[which_N]
        return ids_L, media

    def which(self, number_N: Ids) -> Ids:
        """(N,) the place among all media of what each number is of."""
        return np.searchsorted(self._begins, number_N, side="right") - 1

    def medium(self, which: int) -> tuple[Medium, int]:
        """A medium by its place, and the number of its first vector."""
        return self._media[which], self._begins[which]

    def forget(self, medium: Medium) -> None:
        """Its numbers are never given again."""
        which = self._media.index(medium)
        del self._media[which], self._begins[which], self._known[medium]

    def _number(self, medium: Medium) -> Any:
        if medium not in self._known:
            self._known[medium] = self._next
            self._media.append(medium)
            self._begins.append(self._next)
            self._next += medium.slots
        return self._known[medium]
