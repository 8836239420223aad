"""Sound, pictures and videos of questions as vectors, made once for all options and orders, and for all adapters that
leave what sees and hears as it is.

Each vector has an id beyond the vocabulary, so texts that begin with one recording share it as they share words. An
adapter that tunes an encoder has vectors of its own, which go with its sitting. This module knows no scores.

Shapes: K layers that take vectors, M slots of some media, N of their numbers, D model width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from luthier.data.exams.exam import Exam
from luthier.data.mediasource import MediaSource
from luthier.errors import RequestError
from luthier.models import adapters
from luthier.models.families import parameters_digest
from luthier.models.senses.base import Medium, Senses
from luthier.models.senses.numbers import Ids, Numbers
from luthier.models.senses.spelling import Speller
from luthier.models.senses.store import VectorStore, parts
from luthier.models.senses.supply import Supply
from luthier.models.text_base import TextBase
from luthier.recipe_data import Frames, Limits
from luthier.runtime.devices import Devices
from luthier.schema import PartType

_TUNED = (".lora_", ".base_layer.", ".modules_to_save.", ".original_module.")
"""Parts of the names of what PEFT has put into a module: it may be switched on and off."""


@dataclass
class MediaReader:
    """The media of some exams, for one base. Made by `MediaReader.of`."""

    speller: Speller
    folder: Path
    digest: str
    """sha256 of the weights of encoders and projectors of the base, as it was when this was made."""
    numbers: Numbers
    _media: dict[Medium, None] = field(default_factory=dict)
    """Those of all questions, in their order."""
    _stores: dict[PartType, VectorStore] = field(default_factory=dict)

    @classmethod
    def of(
        cls, base: TextBase, exams: Sequence[Exam], folder: Path, limits: Limits, frames: Frames | None = None
    ) -> MediaReader | None:
        """A reader of the media of exams (name pools too) with a folder of vectors; None for a base of text alone.

        Raises RequestError where such a base is asked about media, SourceError where the settings of the base's
        processors cannot be read.
        """
        kinds = {part.type for exam in exams for item in exam.items for part in item.media}
        senses = base.senses
        if senses is None:
            if kinds:
                raise RequestError(
                    f"{base.name} reads text alone, and questions have {' and '.join(sorted(kinds))} in them",
                    "take a base that sees and hears",
                )
            return None
        blobs = {reference: data for exam in exams for reference, data in exam.blobs.items()}
        source = MediaSource(blobs.__getitem__, limits, frames or Frames())
        numbers = Numbers(senses, int(base.model.get_input_embeddings().weight.shape[0]))
        digest = parameters_digest(base.model, _encoders(senses)) if kinds else ""
        return cls(Speller(senses, source), folder, digest, numbers)

    @property
    def senses(self) -> Senses:
        return self.speller.senses

    @property
    def first(self) -> int:
        """The first id beyond the vocabulary."""
        return self.numbers.first

    @property
    def supply(self) -> Supply:
        """The media as a `Generator` takes them, while a sitting lasts."""
        return Supply(self.senses, self.speller.source, stores=self._stores)

    def write(self, ids: Sequence[int], media: Sequence[Medium]) -> Ids:
        """(L,) spelled ids of a text with the ids of vectors in their slots."""
        self._media.update(dict.fromkeys(media))
        return self.numbers.write(ids, media)

    def read(self, ids: Ids) -> tuple[Ids, tuple[Medium, ...]]:
        """The ids as they were spelled, and their media."""
        return self.numbers.read(ids)

    @contextmanager
    def sitting(self, model: Any, devices: Devices) -> Iterator[None]:
        """Have the vectors of all media as this model makes them, while the block lasts; with several processes the
        leading one makes them.

        Raises MediaError for a medium that cannot be decoded, DiskError where there is no room.
        """
        bare = adapters.bare(model)
        modes = [(module, module.training) for module in bare.modules()]  # encoders rest while they are asked
        with TemporaryDirectory(prefix="luthier-vectors-") as scratch:
            folder = self.folder if not self._media or self._as_made(bare) else Path(scratch)
            try:
                with devices.leader_first(), devices.precision.autocast():
                    for kind in dict.fromkeys(medium.kind for medium in self._media):
                        store = VectorStore(folder, self.senses, self.speller.source, bare, kind)
                        store.prepare(medium for medium in self._media if medium.kind == kind)
                        self._stores[kind] = store
                yield
            finally:
                self._stores.clear()
                for module, training in modes:
                    module.training = training

    def rows(self, number_N: Ids) -> torch.Tensor:
        """(N, D) the vectors of these ids, for bases with one layer of them."""
        which_N = self.numbers.which(number_N)
        found, places = [], []
        for which in np.unique(which_N):
            place_M = np.flatnonzero(which_N == which)
            medium, begin = self.numbers.medium(int(which))
            vectors_SD = self._stores[medium.kind].load(medium)[0]
            found.append(vectors_SD[torch.from_numpy(number_N[place_M] - begin)])
            places.append(place_M)
        order_N = np.argsort(np.concatenate(places))
        return torch.cat(found)[torch.from_numpy(order_N)]

    def vectors(self, media: Iterable[Medium]) -> torch.Tensor | None:
        """(K, M, D) of some media, end to end; None for none."""
        found = [self._stores[medium.kind].load(medium) for medium in media]
        return torch.cat(found, dim=1) if found else None

    def _as_made(self, bare: Any) -> bool:
        """Whether encoders and projectors are those of the base, with nothing put into them."""
        encoders = _encoders(self.senses)
        names = [name for name in bare.state_dict() if name.startswith(encoders)]
        if any(word in name for name in names for word in _TUNED):
            return False
        return parameters_digest(bare, encoders) == self.digest


def _encoders(senses: Senses) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for kind in senses.kinds for name in parts(senses, kind)))
