"""Splits that keep speakers and recordings apart, and stay put when rows are added."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.building.rows import TableRow
from luthier.data.split import check_groups, check_media, split_of, stratified, validation_split
from luthier.errors import DataError
from luthier.schema import Message, Part, Provenance, Row, Target


def item(group: str, number: int = 0, media: str = "m", source: str = "a") -> TableRow:
    messages = (Message("user", (Part("audio", media=f"sha256:{media}"),)),)
    return TableRow(
        Row(f"{group}-{number}", messages, Target(grade=3.0), group, "train", Provenance(source, f"t#{number}")), 1.0
    )


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(st.text(max_size=4), min_size=2, max_size=60, unique=True),
    seed=st.integers(0, 99),
    fraction=st.floats(0.01, 0.9),
)
def test_a_split_keeps_every_row_once_and_groups_whole(groups: list[str], seed: int, fraction: float) -> None:
    rows = [item(group, number) for group in groups for number in range(2)]
    train, held = validation_split(rows, fraction, seed)
    assert train
    assert held
    assert sorted(row.row.id for row in train + held) == sorted(row.row.id for row in rows)
    check_groups(train, held)
    assert validation_split(rows[::-1], fraction, seed)[1] == held[::-1]


def test_new_rows_never_move_old_ones() -> None:
    rows = [item(f"s{i}", n) for i in range(100) for n in range(3)]
    train, held = validation_split(rows[:150], 0.2, 7)
    more_train, more_held = validation_split(rows, 0.2, 7)
    assert set(map(id, train)) <= set(map(id, more_train))
    assert set(map(id, held)) <= set(map(id, more_held))
    assert 0.1 < len(more_held) / len(rows) < 0.3
    assert validation_split(rows, 0.2, 8)[1] != more_held


def test_splits_that_cannot_be_made() -> None:
    assert validation_split([item("s")], 0.0, 0) == ([item("s")], [])
    with pytest.raises(DataError, match="all 2 rows are of the group 's'"):
        validation_split([item("s"), item("s", 1)], 0.1, 0)
    with pytest.raises(DataError, match="not in"):
        validation_split([item("s")], 1.0, 0)


def test_shared_speakers_are_named() -> None:
    train = [item(f"s{i}") for i in range(9)]
    with pytest.raises(DataError, match=r"7 speakers are in both .*: s0, s1, s2, s3, s4 and 2 more \(7 of 8"):
        check_groups(train, [*train[:7], item("new")])
    with pytest.raises(DataError, match="1 speaker is"):
        check_groups(train, train[:1])
    check_groups(train, [item("new")])


def test_a_shared_recording_is_an_error() -> None:
    with pytest.raises(DataError, match="1 recording is in both train and test, such as a t#0 and b t#4"):
        check_media([item("s1", media="x"), item("s2", media="y")], [item("s3", 4, "x", "b")])
    check_media([item("s1", media="x")], [item("s1", media="z")])


@settings(max_examples=40, deadline=None)
@given(groups=st.lists(st.text(max_size=4), min_size=1, max_size=80, unique=True), seed=st.integers(0, 99))
def test_a_hash_split_looks_at_nothing_but_the_group(groups: list[str], seed: int) -> None:
    first = {group: split_of(seed, group, 0.1, 0.2) for group in groups[: len(groups) // 2]}
    later = {group: split_of(seed, group, 0.1, 0.2) for group in reversed(groups)}
    assert first.items() <= later.items()
    for group in groups:  # a wider validation side takes from train alone
        assert later[group] in (split_of(seed, group, 0.3, 0.2), "train")


def test_hash_shares_are_near_what_is_asked_in_every_stratum() -> None:
    for stratum in ("", "pass", "fail"):
        found = [split_of(3, f"g{i}", 0.1, 0.2, stratum) for i in range(5000)]
        assert abs(found.count("validation") - 500) < 5 * (5000 * 0.1 * 0.9) ** 0.5
        assert abs(found.count("test") - 1000) < 5 * (5000 * 0.2 * 0.8) ** 0.5
    with pytest.raises(DataError, match="nothing to train on"):
        split_of(3, "g", 0.5, 0.5)


def test_stratified_shares_are_exact_and_groups_stay_whole() -> None:
    groups = [f"g{i}" for i in range(100)] + ["speaker"] * 10
    strata = ["pass"] * 80 + ["fail"] * 20 + ["pass", "fail"] * 5
    found = stratified(groups, strata, 0.1, 0.2, 3)
    assert [found[:80].count(side) for side in ("validation", "test")] == [8, 16]
    assert [found[80:100].count(side) for side in ("validation", "test")] == [2, 4]
    assert len(set(found[100:])) == 1
