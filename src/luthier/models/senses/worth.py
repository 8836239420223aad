"""Whether it pays to keep vectors of media: measured on the first of them, said in one line, remembered by the run.

Making a medium's vectors once and reading them is set against making them each time that they are looked at. What was
decided by the clock is written into the run's folder, so that a resumed run does the same. Knows looks and seconds;
refuses to know stages and rows.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import torch

from luthier.console import say
from luthier.data.augment import changes
from luthier.files import free_bytes, read_json, write_json
from luthier.models.senses.base import Medium
from luthier.models.senses.store import VectorStore, filled, tuned
from luthier.models.senses.supply import Supply
from luthier.models.senses.vectorfiles import VectorFiles
from luthier.schema import PartType

_TRIED = 4
"""Media that are timed at most, after one that warms up."""
_ROUNDS = 3
_SECONDS = 2.0
"""Where these are over, what was timed is enough."""
_SPARED = 2**30
"""Bytes of the disk that checkpoints are to find."""
_DECISIONS = "decision.json"


@dataclass(frozen=True)
class Look:
    """Media that a run reads together: those of some rows, in each of `times` epochs, validations or scorings."""

    media: Sequence[Medium]
    times: float
    training: bool = False
    """Whether they are augmented, where the recipe says so."""


@dataclass(frozen=True)
class Cost:
    """Seconds and bytes that one medium takes here, by the median of a few."""

    live: float
    """To decode, prepare and encode it for a pass."""
    making: float
    """To decode, prepare and encode it, and to write its vectors."""
    reading: float
    """To read its vectors into a batch, from a file that memory holds a copy of."""
    size: float

    @property
    def break_even(self) -> float:
        """Looks at a medium from which a store is faster; infinite where reading takes longer than making."""
        saved = self.live - self.reading
        return self.making / saved if saved > 0 else float("inf")

    def pays(self, missing: int, looks: float) -> bool:
        """Whether `looks` at media of which so many are still to be made take less time with a store."""
        return missing * self.making + looks * self.reading < looks * self.live


@dataclass(frozen=True)
class Decision:
    """What was decided of one kind of media, and why."""

    wish: str
    """train.feature_store, as it was then."""
    use: bool
    why: str
    cost: Cost | None = None


def stock(supply: Supply, model: object, folder: Path, looks: Sequence[Look], wish: str, stage: str) -> None:
    """Give the supply a store, filled, of each kind of media for which that is wished for, right and worth it.

    `model` is the bare base with its adapters, as it will be trained; `folder` the run's features/, `wish`
    train.feature_store. Media that training augments are left out: their stores serve other rows. Call it under the
    autocast of passes. Raises MediaError for media that cannot be decoded.
    """
    stores: dict[PartType, VectorStore] = {}
    for kind in dict.fromkeys(medium.kind for look in looks for medium in look.media):
        counts, changed = _counts(supply, kind, looks)
        known = _remembered(folder, stage, kind, wish)
        decision = _ruled_out(supply, model, kind, counts, wish) or known
        if decision is None or decision.use:
            store = VectorStore(folder, supply.senses, supply.source, model, kind)
            decision = decision or _decided(store, counts, wish)
            if decision.use and not filled(store, counts):
                decision = replace(decision, use=False, why="the disk is full")
            if decision.use:
                stores[kind] = store
        if decision != known:
            _remember(folder, stage, kind, decision)
        more = "; training rows are augmented, and encoded anew" if changed and counts else ""
        say(f"{kind} vectors are {'kept' if decision.use else 'not kept'}: {decision.why}{more}")
    supply.stores = stores


def _counts(supply: Supply, kind: PartType, looks: Sequence[Look]) -> tuple[dict[Medium, float], bool]:
    """How often each medium is looked at as it is, and whether some are changed for training."""
    found: dict[Medium, float] = {}
    changed = False
    for look in looks:
        of_kind = [medium for medium in look.media if medium.kind == kind]
        if look.training and changes(kind, supply.augmentation):
            changed = changed or bool(of_kind)
            continue
        for medium in of_kind:
            found[medium] = found.get(medium, 0.0) + look.times
    return found, changed


def _ruled_out(
    supply: Supply, model: object, kind: PartType, counts: dict[Medium, float], wish: str
) -> Decision | None:
    """What forbids a store, whatever it costs."""
    if wish == "off":
        return Decision(wish, False, "train.feature_store is off")
    if tuned(supply.senses, model, kind):
        return Decision(wish, False, "their encoder or projector is tuned")
    if not counts:
        return Decision(wish, False, "all of them are augmented")
    return None


def _decided(store: VectorStore, counts: dict[Medium, float], wish: str) -> Decision:
    if wish == "on":
        return Decision(wish, True, "train.feature_store is on")
    cost = measure(store, list(counts))
    missing, looks = sum(medium not in store for medium in counts), sum(counts.values())
    room = free_bytes(store.folder) - _SPARED
    needed = missing * cost.size
    told = (
        f"{cost.live:.2g} s a medium live, {cost.reading:.2g} s stored, even at {cost.break_even:.1f} looks at each, "
        f"here {looks / len(counts):.1f}; {needed / 1e6:,.1f} MB to write"
    )
    if needed > room:
        return Decision(wish, False, f"{told}, and {max(0, room) / 1e6:,.0f} MB are free", cost)
    return Decision(wish, cost.pays(missing, looks), told, cost)


def measure(store: VectorStore, media: Sequence[Medium]) -> Cost:
    """What the first media cost, live and stored; nothing is put into the store."""
    prepared, decoding = [], []
    for medium in media[: _TRIED + 1]:
        begin = time.monotonic()
        prepared.append(store.prepared(medium))
        decoding.append(time.monotonic() - begin)
    begin = time.monotonic()
    store.encode(prepared[:1])
    few = max(1, min(_TRIED, int(_SECONDS / (time.monotonic() - begin))))  # of a slow encoder one is enough
    timed = prepared[1 : few + 1] or prepared
    together: list[float] = []
    alone: list[float] = []
    writing: list[float] = []
    reading: list[float] = []
    first = time.monotonic()
    while len(alone) < _ROUNDS and (not alone or time.monotonic() - first < _SECONDS):
        begin = time.monotonic()
        store.encode(timed)  # as a pass does; its copy to the host waits for the device
        encoded = time.monotonic()
        vectors = [store.encode([one])[0] for one in timed]
        together.append(encoded - begin)
        alone.append(time.monotonic() - encoded)
        written, read = _through_a_file(store, vectors)
        writing.append(written)
        reading.append(read)
    decode, count = median(decoding[1:] or decoding), len(timed)
    return Cost(
        live=decode + median(together) / count,
        making=decode + (median(alone) + median(writing)) / count,
        reading=median(reading) / count,
        size=sum(one.nbytes for one in vectors) / count,
    )


def _through_a_file(store: VectorStore, vectors: Sequence[torch.Tensor]) -> tuple[float, float]:
    """Seconds to write vectors beside the store, and to read them into one batch."""
    store.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store.folder, prefix=".tmp-") as scratch:
        files = VectorFiles(Path(scratch), store.files.dtype)
        names = [str(number) for number in range(len(vectors))]
        begin = time.monotonic()
        files.append([("one", vectors[0][:, :1])])  # what a write costs beside its bytes: many media share it
        fixed = time.monotonic()
        files.append(list(zip(names, vectors, strict=True)))
        written = time.monotonic()
        files = VectorFiles(Path(scratch), store.files.dtype)
        opened = time.monotonic()
        torch.cat([files.load(name) for name in names], dim=1)
        return max(0.0, (written - fixed) - (fixed - begin)), time.monotonic() - opened


def _remembered(folder: Path, stage: str, kind: PartType, wish: str) -> Decision | None:
    """What was decided before in this run for the same wish."""
    path = folder / _DECISIONS
    told = read_json(path).get(f"{stage}/{kind}") if path.is_file() else None
    if told is None or told["wish"] != wish:
        return None
    return Decision(**{**told, "cost": told["cost"] and Cost(**told["cost"])})


def _remember(folder: Path, stage: str, kind: PartType, decision: Decision) -> None:
    path = folder / _DECISIONS
    known = read_json(path) if path.is_file() else {}
    write_json(path, {**known, f"{stage}/{kind}": asdict(decision)})
