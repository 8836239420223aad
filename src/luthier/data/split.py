"""Keeps apart what must not meet: validation rows by group, and test speakers and recordings by refusal.

Knows groups and media references; refuses to know files, audio and grades. A group's side depends on the
seed and its own name alone, so new rows never move old ones.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, Protocol, TypeVar

from luthier.errors import DataError
from luthier.schema import Row

SHOWN = 5
Split = Literal["train", "validation", "test"]


class HasRow(Protocol):
    """Anything that carries a row, as a table's rows do."""

    @property
    def row(self) -> Row: ...


Item = TypeVar("Item", bound=HasRow)


def group_position(seed: int, group: str) -> float:
    """Where a group lies in [0, 1): the sha256 of seed and name, as a fraction of 2^53."""
    digest = hashlib.sha256(f"{seed}\0{group}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2.0**53


def validation_split(rows: Sequence[Item], fraction: float, seed: int) -> tuple[list[Item], list[Item]]:
    """Part `rows` into (train, validation) by whole groups; about `fraction` of the groups are validation.

    A group is validation when its position is below `fraction`. Where that leaves one side empty, which
    few groups make likely, the one group nearest to the line crosses it. Raises DataError for a fraction
    outside [0, 1) and for rows of a single group, which cannot be parted.
    """
    if not 0.0 <= fraction < 1.0:
        raise DataError(f"a validation fraction of {fraction:g} is not in [0, 1)", "give 0 for none, or 0.1")
    if fraction == 0.0 or not rows:
        return list(rows), []
    positions = {item.row.group: group_position(seed, item.row.group) for item in rows}
    if len(positions) < 2:
        raise DataError(
            f"all {len(rows)} rows are of the group {next(iter(positions))!r}, which stays whole",
            "name a column with more than one speaker, or set the validation fraction to 0",
        )
    chosen = {group for group, position in positions.items() if position < fraction}
    nearest = sorted(positions, key=lambda group: (positions[group], group))
    if not chosen:
        chosen = {nearest[0]}
    elif len(chosen) == len(positions):
        chosen.remove(nearest[-1])
    return (
        [item for item in rows if item.row.group not in chosen],
        [item for item in rows if item.row.group in chosen],
    )


def split_of(seed: int, group: str, validation: float, test: float, stratum: str = "") -> Split:
    """The split of a group, by its hash: validation from the low end of [0, 1), test from the high end.

    Nothing but the arguments is looked at, so added rows never move old ones, and a group that goes to test stays
    there when the validation fraction changes. What a hash cannot promise is exact shares: of n groups about
    n x fraction fall on a side, give or take sqrt(n x fraction x (1 - fraction)), in every stratum as in the whole.
    A `stratum` makes the draw of each class its own, so that one class's luck says nothing of another's; a group
    with rows in two strata must be given without one, or it would be parted. `stratified` gives exact shares.
    Raises DataError for fractions below 0 or that leave nothing to train on.
    """
    if not (validation >= 0.0 and test >= 0.0 and validation + test < 1.0):
        raise DataError(
            f"a validation fraction of {validation:g} and a test fraction of {test:g} leave nothing to train on",
            "give fractions of 0 or more that sum to less than 1, such as 0.1 and 0.1",
        )
    position = group_position(seed, f"{stratum}\0{group}" if stratum else group)
    if position < validation:
        return "validation"
    return "test" if position >= 1.0 - test else "train"


def stratified(groups: Sequence[str], strata: Sequence[str], validation: float, test: float, seed: int) -> list[Split]:
    """The split of each row, with exact shares in every stratum (a verdict, a choice) where groups allow it.

    Of the n rows of a stratum that are alone in their group, round(n x fraction) go to each side, those nearest to
    its end of the hash. Rows of larger groups go where `split_of` sends their group, for a group stays whole. The
    price of exact shares: an added row can push the row at a border over it, at most one per side and stratum.
    """
    sizes = Counter(groups)
    found = [split_of(seed, group, validation, test) for group in groups]
    members: dict[str, list[int]] = {}
    for i, (group, stratum) in enumerate(zip(groups, strata, strict=True)):
        if sizes[group] == 1:
            members.setdefault(stratum, []).append(i)
    for own in members.values():
        own.sort(key=lambda i: (group_position(seed, groups[i]), groups[i]))
        low = round(len(own) * validation)
        high = len(own) - min(round(len(own) * test), len(own) - low)
        for rank, i in enumerate(own):
            found[i] = "validation" if rank < low else "test" if rank >= high else "train"
    return found


def check_groups(train: Iterable[HasRow], test: Iterable[HasRow]) -> None:
    """Raise DataError where a group (speaker) is on both sides; at most five are named."""
    tested = [item.row for item in test]
    shared = {item.row.group for item in train} & {row.group for row in tested}
    if shared:
        count = sum(row.group in shared for row in tested)
        more = f" and {len(shared) - SHOWN} more" if len(shared) > SHOWN else ""
        raise DataError(
            f"{_named(shared, 'speaker')}: {', '.join(sorted(shared)[:SHOWN])}{more} "
            f"({count} of {len(tested)} test rows)",
            "take those speakers out of one side, or split by the speaker column",
        )


def check_media(train: Iterable[HasRow], test: Iterable[HasRow]) -> None:
    """Raise DataError where the same recording (by sha256) is on both sides, whatever its row says."""
    origins = {media: item.row.provenance for item in train for media in item.row.media}
    pairs = {
        media: (origins[media], item.row.provenance) for item in test for media in item.row.media if media in origins
    }
    if pairs:
        first, second = pairs[min(pairs)]
        raise DataError(
            f"{_named(set(pairs), 'recording')}, "
            f"such as {first.source} {first.origin} and {second.source} {second.origin}",
            "take the repeated recordings out of one side",
        )


def _named(shared: set[str], what: str) -> str:
    return f"{len(shared)} {what}{'s are' if len(shared) > 1 else ' is'} in both train and test"
