"""Gives every row that stays its split, its weight and its place in the table.

Knows groups, classes and seeds; refuses to know messages, files and how duplicates are found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import orjson
from numpy.typing import NDArray

from luthier.console import say
from luthier.data import balance as balancing
from luthier.data.building.decide import Decisions
from luthier.data.building.request import TableRequest
from luthier.data.building.stage import Stage
from luthier.data.split import split_of
from luthier.recipe import Scale

SPLITS = ("train", "validation", "test")
LEFT_OUT = {
    "balanced_away": ("balance", "its class has more rows than the smallest one"),
    "group_in_test": ("split", "a held-out source has rows of its group"),
}
"""Reasons for which a row is left out after its stage, with the step and the detail of its line in the ledger."""
_REASONS = ("", *LEFT_OUT)


@dataclass(frozen=True)
class Layout:
    """Where each row of each stage goes. All arrays run over the rows of the stages, one stage after another."""

    stages: Sequence[Stage]
    rank: NDArray[np.int64]
    """Place in the table; -1 for rows that are not in it."""
    split: NDArray[np.uint8]
    """Index into SPLITS."""
    weight: NDArray[np.float64]
    repeats: NDArray[np.int32]
    left_out: NDArray[np.uint8]
    classes: dict[str, dict[str, int]]
    """Rows of each class in each split, of graded rows and choices."""

    @property
    def rows(self) -> int:
        return int((self.rank >= 0).sum())

    def reason(self, index: int) -> str:
        """Why a row was left out here; "" for one that stays or was merged."""
        return _REASONS[int(self.left_out[index])]

    def counts(self) -> dict[str, int]:
        """Rows in each split."""
        found = Counter(self.split[self.rank >= 0].tolist())
        return {name: found[code] for code, name in enumerate(SPLITS) if found[code]}


def lay_out(stages: Sequence[Stage], decisions: Decisions, request: TableRequest) -> Layout:
    """Split, balance and rank every row that stays.

    Tables of graded rows keep training rows of held-out groups: their stages check groups against all that they were
    trained on, and refuse.
    """
    total = sum(stage.rows for stage in stages)
    split, left_out = np.zeros(total, dtype=np.uint8), np.zeros(total, dtype=np.uint8)
    labels, ids = np.full(total, "", dtype=object), np.zeros(total, dtype=np.uint64)
    at = 0
    for stage in stages:
        for batch in stage.batches(["id", "group", "target"]):
            hexes = "".join(batch.column("id").to_pylist())
            ids[at : at + batch.num_rows] = np.frombuffer(bytes.fromhex(hexes), dtype=">u8")
            pairs = zip(batch.column("group").to_pylist(), batch.column("target").to_pylist(), strict=True)
            for place, (group, target) in enumerate(pairs, start=at):
                labels[place] = label_of(target, request.balance.by, request.scale)
                split[place] = _split(request, stage, group)
            at += batch.num_rows
    left_out[decisions.left_out] = _REASONS.index("group_in_test")
    alive = (decisions.into < 0) & (left_out == 0)
    weight, repeats = np.ones(total), np.ones(total, dtype=np.int32)
    if request.balance.method:
        train = np.flatnonzero(alive & (split == SPLITS.index("train")))
        found = balancing.balance([str(labels[i]) for i in train], request.balance.method, request.seed)
        weight[train], repeats[train] = found.weights, found.repeats
        left_out[train[~found.keep]] = _REASONS.index("balanced_away")
        alive[train[~found.keep]] = False
        say(found.table())
    rank = np.full(total, -1, dtype=np.int64)
    kept = np.flatnonzero(alive)
    order = kept if request.graded else kept[np.argsort(_mixed(ids[kept], request.seed), kind="stable")]
    rank[order] = np.arange(len(order))
    return Layout(stages, rank, split, weight, repeats, left_out, _classes(split[kept], labels[kept]))


def _split(request: TableRequest, stage: Stage, group: str) -> int:
    if stage.split == "test":
        return SPLITS.index("test")
    if not request.validation_fraction and not request.test_fraction:
        return 0
    return SPLITS.index(split_of(request.seed, group, request.validation_fraction, request.test_fraction))


def _classes(split: NDArray[np.uint8], labels: NDArray[np.object_]) -> dict[str, dict[str, int]]:
    found = Counter((code, label) for code, label in zip(split.tolist(), labels.tolist(), strict=True) if label)
    return {
        name: {label: count for (own, label), count in sorted(found.items()) if own == code}
        for code, name in enumerate(SPLITS)
        if any(own == code for own, _ in found)
    }


def label_of(target: str, by: str, scale: Scale) -> str:
    """The class of a row for balancing, from its target's JSON; "" where it has none."""
    if target == "{}":
        return ""
    found = orjson.loads(target)
    if by == "choice" or "grade" not in found:
        return str(found.get("choice", ""))
    grade = float(found["grade"])
    return f"{grade:g}" if by == "grade" else ("pass" if grade >= scale.pass_mark else "fail")


def _mixed(ids: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """The order of a shuffle that depends on each row's id and the seed alone (SplitMix64's finaliser)."""
    found = ids ^ np.uint64((seed * 0x9E3779B97F4A7C15) % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        found = (found ^ (found >> np.uint64(shift))) * np.uint64(factor)
    return found ^ (found >> np.uint64(31))
