"""Vectors by name in a few large files: appended, never changed, read through memory maps.

Numbers lie end to end in `00000.raw` and so on; `index.jsonl` says what lies where, and is written after it. What a
kill tore is beyond what the index tells, so it is overwritten. Several processes may read while one writes; writers
take turns, for one write each. Knows nothing of media and models. A folder can be thrown away at any time.

Shapes: K layers that take vectors, S slots of a medium, D model width.
"""

from __future__ import annotations

import fcntl
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from luthier.errors import DiskError
from luthier.files import append_bytes

_FULL = 2**30
"""Bytes from which a file is followed by the next."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where vectors lie; `begin` counts numbers, not bytes."""

    file: int
    begin: int
    shape: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.begin + math.prod(self.shape)


@dataclass
class VectorFiles:
    """A folder of vectors of one number format, as another process may be filling it."""

    folder: Path
    dtype: torch.dtype
    _places: dict[str, _Place] = field(default_factory=dict, init=False, repr=False)
    _ends: dict[int, int] = field(default_factory=dict, init=False, repr=False)
    """Numbers of each file that the index tells of."""
    _maps: dict[int, torch.Tensor] = field(default_factory=dict, init=False, repr=False)
    _read: int = field(default=0, init=False, repr=False)
    """Bytes of the index that were read and hold."""

    def __post_init__(self) -> None:
        self.refresh()

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __len__(self) -> int:
        return len(self._places)

    @property
    def nbytes(self) -> int:
        """Bytes of all vectors."""
        return sum(self._ends.values()) * self.dtype.itemsize

    def load(self, name: str) -> torch.Tensor:
        """(K, S, D) in the mapped file, not copied: for reading. Raises KeyError for an unknown name."""
        place = self._places[name]
        held = self._maps.get(place.file)
        if held is None or len(held) < place.end:
            path, count = self._file(place.file), self._ends[place.file]
            held = self._maps[place.file] = torch.from_file(str(path), shared=False, size=count, dtype=self.dtype)
        return held[place.begin : place.end].view(place.shape)

    def append(self, named: Sequence[tuple[str, torch.Tensor]]) -> None:
        """Add vectors on the host; those that are here already stay as they are.

        Raises DiskError; then nothing of them is here.
        """
        with self._turn():
            self.refresh()
            fresh = {name: vectors for name, vectors in named if name not in self._places}
            if not fresh:
                return
            last = max(self._ends, default=0)
            begin = self._ends.get(last, 0)
            if begin * self.dtype.itemsize >= _FULL:
                last, begin = last + 1, 0
            lines = []
            at = begin
            for name, vectors in fresh.items():
                place = _Place(last, at, tuple(vectors.shape))
                lines.append(json.dumps({"name": name, "file": last, "begin": at, "shape": place.shape}) + "\n")
                at = place.end
            data = b"".join(_bytes(vectors.to(self.dtype)) for vectors in fresh.values())
            append_bytes(self._file(last), data, keep=begin * self.dtype.itemsize)
            append_bytes(self._index, "".join(lines).encode(), keep=self._read)
            self.refresh()

    def refresh(self) -> None:
        """Read what was added since. The index is believed up to the first line that is torn or tells of no vectors."""
        if not self._index.is_file():
            return
        with self._index.open("rb") as stream:
            stream.seek(self._read)
            added = stream.read()
        sizes: dict[int, int] = {}
        for line in added.splitlines(keepends=True):
            place = _told(line)
            if place is None:
                return
            name, where = place
            if where.file not in sizes:
                path = self._file(where.file)
                sizes[where.file] = path.stat().st_size if path.is_file() else 0
            if where.end * self.dtype.itemsize > sizes[where.file]:
                return
            self._places[name] = where
            self._ends[where.file] = where.end
            self._read += len(line)

    @property
    def _index(self) -> Path:
        return self.folder / "index.jsonl"

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:05}.raw"

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Hold the right to write, which dies with its process."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            stream = (self.folder / ".lock").open("w")
        except OSError as error:
            raise DiskError(
                f"{self.folder}: could not be written: {error.strerror}",
                "free some space or choose a folder that can be written",
            ) from error
        with stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield


def _told(line: bytes) -> tuple[str, _Place] | None:
    """Name and place of a line of the index; None where it is torn."""
    if not line.endswith(b"\n"):
        return None
    try:
        told = json.loads(line)
        return str(told["name"]), _Place(int(told["file"]), int(told["begin"]), tuple(told["shape"]))
    except (ValueError, KeyError, TypeError):
        return None


def _bytes(vectors: torch.Tensor) -> memoryview:
    return vectors.contiguous().reshape(-1).view(torch.uint8).numpy().data
