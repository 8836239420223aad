"""Decides how many rows each source gives to an epoch, and in which order they come.

Knows counts, weights and seeds; refuses to know rows. The order is a pure function of (seed, epoch): a run that
resumes asks for the same epoch and goes on at its position. Shuffles sort raw 64-bit words of Philox (Salmon et al.
2011), whose stream numpy keeps as it is from version to version; its `permutation` may change.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.console import table
from luthier.errors import DataError
from luthier.recipe_data import Mix

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class MixSource:
    """A source as the mixture sees it. `repeats` says how often each of its rows counts (balancing up), or None."""

    name: str
    rows: int
    weight: float = 0.0
    cap: int = 0
    epochs: float = 1.0
    repeats: NDArray[np.integer[Any]] | None = field(default=None, compare=False)

    @property
    def size(self) -> int:
        """Its rows, each counted as often as it repeats."""
        return self.rows if self.repeats is None else int(self.repeats.sum())

    @property
    def available(self) -> int:
        """The most rows it can give to one epoch: its size times its epochs, at most its cap."""
        most = math.floor(self.size * Fraction(repr(float(self.epochs))))
        return min(most, self.cap) if self.cap else most


@dataclass(frozen=True, eq=False)
class MixPlan:
    """What an epoch is made of. `quotas` are exact counts, `asked` the exact shares, both in the order of `sources`.

    Within an epoch a source's rows come in passes: every row once before any comes again. What is left of a quota
    after whole passes is a window over a fixed shuffle of the source, and it moves on with every epoch, so that a
    capped source shows all its rows over the epochs. Where `repeats` are given, copies count as rows do.
    """

    sources: tuple[MixSource, ...]
    quotas: tuple[int, ...]
    asked: tuple[float, ...]
    seed: int

    def __len__(self) -> int:
        return sum(self.quotas)

    def order(self, epoch: int) -> Indices:
        """The rows of an epoch in order: int64 indices into the sources put one after the other; read-only."""
        return _order(self, epoch)

    def row_at(self, epoch: int, position: int) -> int:
        """The index of the row at one position of an epoch."""
        return int(self.order(epoch)[position])

    def table(self) -> str:
        """Rows, quota, and the share that was asked for beside the one that whole rows can give."""
        total = len(self)
        lines = [
            [s.name, f"{s.rows:,}", f"{quota:,}", f"{quota / s.rows:.3f}", f"{asked:.4%}", f"{quota / total:.4%}"]
            for s, quota, asked in zip(self.sources, self.quotas, self.asked, strict=True)
        ]
        lines.append(["all", f"{sum(s.rows for s in self.sources):,}", f"{total:,}", "", "100%", "100%"])
        return table(["source", "rows", "in an epoch", "passes", "asked", "realised"], lines)

    def to_json(self) -> dict[str, Any]:
        """The plan for a manifest; repeats are left out, as the table keeps them row by row."""
        total = len(self)
        return {
            "seed": self.seed,
            "total": total,
            "sources": [
                {
                    "name": s.name,
                    "rows": s.rows,
                    "quota": quota,
                    "asked": round(asked, 9),
                    "realised": round(quota / total, 9),
                    "weight": s.weight,
                    "cap": s.cap,
                    "epochs": s.epochs,
                }
                for s, quota, asked in zip(self.sources, self.quotas, self.asked, strict=True)
            ],
        }


def plan_mix(sources: Sequence[MixSource], mix: Mix, seed: int) -> MixPlan:
    """Exact quotas, by largest remainder.

    - Neither weights nor a temperature: what each source has (rows times epochs, at most its cap); `mix.total` takes
      that many of them, in the same proportions.
    - Weights: `mix.total` rows split in their proportions; without a total, the largest at which no source is asked
      for more than it has.
    - A temperature T: as weights of size^(1/T) (Devlin et al. 2019, multilingual BERT; T = 1 is by size).

    Raises DataError naming every source that is empty, wrongly set, or asked for more rows than it has.
    """
    _check(sources, mix)
    available = [source.available for source in sources]
    if any(source.weight for source in sources):
        weights = [Fraction(repr(float(source.weight))) for source in sources]
    elif mix.temperature:
        # Roots taken over the largest size stay in floating point for every size and temperature.
        largest = max(source.size for source in sources)
        exponent = 1.0 / mix.temperature
        weights = [
            Fraction(source.size) if exponent == 1.0 else Fraction(f"{(source.size / largest) ** exponent:.12g}")
            for source in sources
        ]
    else:
        weights = [Fraction(count) for count in available]
    shares = [weight / sum(weights) for weight in weights]
    total = mix.total or math.floor(
        min(Fraction(count) / share for count, share in zip(available, shares, strict=True) if share)
    )
    quotas = largest_remainder(shares, total)
    problems = [
        f"source {s.name}: the mixture asks for {quota:,} of its rows an epoch and it gives at most {most:,} "
        f"({s.size:,} rows x {s.epochs:g} epochs{f', cap {s.cap:,}' if s.cap else ''})"
        if quota
        else f"source {s.name}: its share of {total:,} rows is less than one row"
        for s, quota, most in zip(sources, quotas, available, strict=True)
        if not 0 < quota <= most
    ]
    if problems:
        raise DataError("\n".join(problems), "change data.mix.total, or that source's weight, cap or epochs")
    return MixPlan(tuple(sources), tuple(quotas), tuple(float(share) for share in shares), seed)


def largest_remainder(shares: Sequence[Fraction], total: int) -> list[int]:
    """Whole counts that sum to `total`, each its exact share rounded down or up; ties go to the earlier one."""
    exact = [share * total for share in shares]
    found = [math.floor(value) for value in exact]
    order = sorted(range(len(exact)), key=lambda i: (found[i] - exact[i], i))
    for i in order[: total - sum(found)]:
        found[i] += 1
    return found


def _check(sources: Sequence[MixSource], mix: Mix) -> None:
    problems: list[str] = []
    weighted = any(source.weight > 0 for source in sources)
    names = [source.name for source in sources]
    for source in sources:
        where = f"source {source.name}"
        if names.count(source.name) > 1:
            problems.append(f"{where}: is named {names.count(source.name)} times")
        if source.rows < 1:
            problems.append(f"{where}: is empty, it has no row to give")
        elif not source.weight >= 0 or math.isinf(source.weight):
            problems.append(f"{where}: a weight of {source.weight:g} is not a number of 0 or more")
        elif weighted and not source.weight:
            problems.append(f"{where}: has no weight while others have one")
        elif source.cap < 0:
            problems.append(f"{where}: a cap of {source.cap} is below 0")
        elif not 0 < source.epochs < math.inf:
            problems.append(f"{where}: epochs of {source.epochs:g} is not above 0")
        elif source.repeats is not None and (len(source.repeats) != source.rows or source.repeats.min() < 0):
            problems.append(f"{where}: repeats must be one count of 0 or more for each of its {source.rows} rows")
        elif not source.available:
            problems.append(f"{where}: {source.size} rows x {source.epochs:g} epochs is less than one row")
    if not sources:
        problems.append("the mixture has no sources")
    if weighted and mix.temperature:
        problems.append("data.mix.temperature: shares come from it or from weights, not from both")
    if not 0 <= mix.temperature < math.inf or mix.total < 0:
        problems.append(f"data.mix: temperature {mix.temperature:g} and total {mix.total} must be 0 or more")
    if problems:
        raise DataError(
            "\n".join(dict.fromkeys(problems)),
            "take the source out, or set its weight, cap and epochs like the others'",
        )


@lru_cache(maxsize=2)
def _order(plan: MixPlan, epoch: int) -> Indices:
    if epoch < 0:
        raise ValueError(f"an epoch of {epoch} is below 0")
    owner = np.repeat(np.arange(len(plan.sources), dtype=np.int16), plan.quotas)
    owner = owner[shuffled(len(owner), plan.seed, epoch, "between sources")]
    found = np.empty(len(owner), dtype=np.int64)
    start = 0
    for number, (source, quota) in enumerate(zip(plan.sources, plan.quotas, strict=True)):
        found[owner == number] = _rows_of(source, quota, plan.seed, epoch) + start
        start += source.rows
    found.flags.writeable = False
    return found


def _rows_of(source: MixSource, quota: int, seed: int, epoch: int) -> Indices:
    """A source's rows of one epoch, in order: whole passes, then the window that moves on with the epoch."""
    size = source.size
    passes, rest = divmod(quota, size)
    found = [shuffled(size, seed, epoch, f"{source.name}\0{number}") for number in range(passes)]
    if rest:
        window = (epoch * rest + np.arange(rest, dtype=np.int64)) % size
        chosen = shuffled(size, seed, -1, source.name)[window]
        found.append(chosen[shuffled(rest, seed, epoch, f"{source.name}\0rest")])
    rows = np.concatenate(found)
    if source.repeats is None:
        return rows
    copies: Indices = np.repeat(np.arange(source.rows, dtype=np.int64), source.repeats)[rows]
    return copies


def shuffled(count: int, seed: int, epoch: int, what: str) -> Indices:
    """The numbers below `count` in an order that follows from the other arguments alone."""
    key = hashlib.sha256(f"{seed}\0{epoch}\0{what}".encode()).digest()
    words = np.random.Philox(key=int.from_bytes(key[:16], "big")).random_raw(count)
    return np.argsort(words, kind="stable").astype(np.int64, copy=False)
