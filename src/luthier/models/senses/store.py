"""Vectors of media whose encoder and projector stay as they are: made once, kept in the run's folder, read by all.

A store is found by all that its vectors follow from: the processor's settings, the weights of encoder and projector,
the number format, the libraries that decode and resize. A medium is encoded alone, one a call: its vectors are the
same bits whoever makes them and after whichever kill. Knows media by reference; refuses to know rows and steps.

Shapes: K layers that take vectors, S slots of a medium, D model width.
"""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch

from luthier.console import progress, say
from luthier.data.mediasource import MediaSource
from luthier.errors import DataError, DiskError, MediaError
from luthier.files import sha256_bytes, write_json
from luthier.models.families import parameters_digest
from luthier.models.senses.base import Medium, Prepared, Senses
from luthier.models.senses.vectorfiles import VectorFiles
from luthier.schema import PartType, canonical

_DECODERS = 2
"""Threads that decode and prepare the next media while the encoder runs."""
_AHEAD = 4
"""Media that wait for the encoder, each as large as its encoder takes it."""
_BYTES, _SECONDS = 2**26, 10.0
"""What is made is written when it is so much, or so old: a kill loses no more."""
_LIBRARIES = ("luthier", "torch", "torchvision", "transformers", "pillow", "av", "soundfile", "soxr")
Item = TypeVar("Item")
Found = TypeVar("Found")


def parts(senses: Senses, kind: PartType) -> tuple[str, ...]:
    """Prefixes of the names of encoder and projector of a kind, in the bare model."""
    return (*senses.encoders.get(kind, ()), *senses.projectors.get(kind, ()))


def tuned(senses: Senses, model: Any, kind: PartType) -> bool:
    """Whether training moves the vectors of a kind: its encoder or projector has weights that take gradients."""
    names = parts(senses, kind)
    return any(weight.requires_grad for name, weight in model.named_parameters() if name.startswith(names))


def rest(senses: Senses, model: Any, kind: PartType) -> None:
    """Put encoder and projector of a kind into evaluation mode: what is frozen has no dropout."""
    names = parts(senses, kind)
    for name, module in model.named_modules():
        if name.startswith(names):
            module.training = False


def place_of(model: Any) -> tuple[torch.device, torch.dtype]:
    """Where the embeddings of a model are, and in which number format: that of its vectors."""
    weight = next(model.get_input_embeddings().parameters())
    return weight.device, weight.dtype


@dataclass
class VectorStore:
    """The vectors of one kind of media. `model` is the bare base with its adapters, on its device.

    What it makes is under the autocast of the caller, as live vectors are.
    """

    folder: Path
    senses: Senses
    source: MediaSource
    model: Any
    kind: PartType

    def __post_init__(self) -> None:
        dtype = place_of(self.model)[1]
        about = {
            "kind": self.kind,
            "senses": self.senses.digest(),
            "weights": parameters_digest(self.model, parts(self.senses, self.kind)),
            "dtype": str(dtype),
            "libraries": {name: _version(name) for name in _LIBRARIES},
        }
        self.place = self.folder / f"{self.kind}-{sha256_bytes(canonical(about).encode())[:16]}"
        self._about = about
        self._frames = sha256_bytes(canonical(asdict(self.source.frames)).encode())[:16]
        self.files = VectorFiles(self.place, dtype)

    def __contains__(self, medium: Medium) -> bool:
        return self._name(medium) in self.files

    def load(self, medium: Medium) -> torch.Tensor:
        """(K, S, D) of a medium that is in the store, in its mapped file: for reading."""
        return self.files.load(self._name(medium))

    def prepare(self, media: Iterable[Medium]) -> None:
        """Make what is missing, and say what there is. Raises MediaError, and DiskError where there is no room."""
        missing = [medium for medium in dict.fromkeys(media) if medium not in self]
        if not missing:
            return
        begin = time.monotonic()
        if not (self.place / "about.json").is_file():
            write_json(self.place / "about.json", self._about)
        rest(self.senses, self.model, self.kind)
        waiting: list[tuple[str, torch.Tensor]] = []
        size, written = 0, begin
        inputs = progress(ahead(self.prepared, missing), f"encoding {self.kind}", len(missing))
        for medium, prepared in zip(missing, inputs, strict=True):
            vectors_KSD = self.encode([prepared])[0]
            waiting.append((self._name(medium), vectors_KSD))
            size += vectors_KSD.nbytes
            if size >= _BYTES or time.monotonic() - written >= _SECONDS:
                self.files.append(waiting)
                waiting, size, written = [], 0, time.monotonic()
        self.files.append(waiting)
        say(
            f"{self.kind} vectors: {len(missing):,} made in {time.monotonic() - begin:.1f} s; "
            f"{len(self.files):,} of {self.files.nbytes / 1e6:,.1f} MB are kept"
        )

    @torch.no_grad()
    def encode(self, prepared: Sequence[Prepared]) -> list[torch.Tensor]:
        """(K, S, D) of each on the host, in the store's number format. Raises DataError for a wrong count."""
        device, dtype = place_of(self.model)
        found = self.senses.encode(self.model, [one.to(device) for one in prepared])
        for one, vectors_KSD in zip(prepared, found, strict=True):
            if vectors_KSD.shape[1] != one.slots:
                raise DataError(
                    f"the encoder makes {vectors_KSD.shape[1]} vectors of {one.kind} where {one.slots} were foreseen",
                    "look at the base's processor settings: they are not those of its encoder",
                )
        return [vectors_KSD.to("cpu", dtype) for vectors_KSD in found]

    def remove(self) -> None:
        """Throw away all vectors: other processes that read them keep what they have mapped."""
        shutil.rmtree(self.place, ignore_errors=True)
        self.files = VectorFiles(self.place, self.files.dtype)

    def prepared(self, medium: Medium) -> Prepared:
        """A medium as its encoder takes it. Raises MediaError, which names it."""
        try:
            found = self.source.load(self.kind, medium.reference)
            return replace(self.senses.prepare(self.kind, found), mode=medium.mode)
        except MediaError as error:
            raise MediaError(error.reason, f"{medium.reference}: {error.detail}") from error

    def _name(self, medium: Medium) -> str:
        """A medium's name in the files. What is taken of a film depends on how its frames are chosen."""
        of_film = self.kind == "video" or "#frame=" in medium.reference
        words = (medium.reference, medium.mode, self._frames if of_film else "")
        return " ".join(word for word in words if word)


def filled(store: VectorStore, media: Iterable[Medium]) -> bool:
    """Whether all vectors could be kept. Where the disk is full that is said, and what there was makes room."""
    try:
        store.prepare(media)
    except DiskError as error:
        store.remove()
        say(f"{error.message}: {store.kind} vectors are not kept, media are encoded anew each time they are read")
        return False
    return True


def ahead(work: Callable[[Item], Found], items: Iterable[Item]) -> Iterator[Found]:
    """`work` of each item in order, done by threads of which a few are ahead of who asks."""
    with ThreadPoolExecutor(_DECODERS) as pool:
        waiting: deque[Future[Found]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
