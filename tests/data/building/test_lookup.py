"""What became of a record: kept, changed, merged, dropped at a step or by the reader, by any of its names."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.data.building.build import build
from luthier.data.building.lookup import Way, find_rows, why
from luthier.errors import DataError
from support.tables import chat, chats, jsonl, request

BROKEN = "Ã©"  # what repair_unicode makes one letter of


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lookup")
    records = [
        chat("one question", "one good answer"),
        chat("ONE  question", "one good ANSWER"),
        chat("two", f"caf{BROKEN} is open"),
        chat("three", f"{BROKEN} ok"),
        "not json",
    ]
    a, b = jsonl(folder / "a.jsonl", records), jsonl(folder / "b.jsonl", chats(2), license="MIT")
    steps = ["repair_unicode", {"length": {"minimum_words": 4}}, "normalise_whitespace"]
    build(request(a, b, steps=steps), folder / "table")
    return folder / "table"


def only(table: Path, name: str) -> Way:
    (way,) = why(table, name)
    return way


def test_a_kept_row_tells_what_it_stands_for(table: Path) -> None:
    way = only(table, "a.jsonl#1")
    assert (way.outcome, way.source, way.origin) == ("kept", "a", "a.jsonl#1")
    assert [(member["origin"], member["how"]) for member in way.members] == [("a.jsonl#2", "exact")]
    assert way.steps == [(s, "passed unchanged") for s in ("repair_unicode", "length", "normalise_whitespace")]
    assert any("it stands for a: a.jsonl#2 (exact, 1.00)" in line for line in way.lines())


def test_a_merged_row_names_the_row_that_stands_for_it(table: Path) -> None:
    way = only(table, "a:a.jsonl#2")
    assert (way.outcome, way.into) == ("merged", only(table, "a.jsonl#1").id)
    assert way.how == "exact, similarity 1.00"


def test_a_changed_row_shows_what_the_step_did(table: Path) -> None:
    steps = dict(only(table, "a.jsonl#3").steps)
    assert BROKEN in steps["repair_unicode"]
    assert "é" in steps["repair_unicode"]
    assert steps["length"] == "passed unchanged"


def test_a_row_dropped_at_a_step_keeps_what_earlier_steps_did(table: Path) -> None:
    way = only(table, "a.jsonl#4")
    assert way.outcome == "dropped"
    assert way.reason.endswith("(at length)")
    assert [step for step, _ in way.steps] == ["repair_unicode"]
    assert "became" in way.steps[0][1]
    assert only(table, way.id) == way


def test_a_record_that_the_reader_dropped_went_through_no_step(table: Path) -> None:
    way = only(table, "a.jsonl#5")
    assert (way.outcome, way.id, way.steps) == ("dropped", "", [])
    assert way.reason.startswith("broken_line")


def test_a_row_is_found_by_id_and_by_each_of_its_names(table: Path) -> None:
    (row,) = find_rows(table, "b.jsonl#1")
    assert [found.row.id for found in find_rows(table, row.row.id)] == [row.row.id]
    assert [found.row.id for found in find_rows(table, "b:b.jsonl#1")] == [row.row.id]
    assert not list(find_rows(table, "a:b.jsonl#1"))
    assert not list(find_rows(table, "b.jsonl#"))
    assert only(table, row.row.id).origin == "b.jsonl#1"


@pytest.mark.parametrize("name", ["a.jsonl#99", "b:a.jsonl#1", "0123456789abcdef", "", "a.jsonl"])
def test_an_unknown_name_is_an_error(table: Path, name: str) -> None:
    with pytest.raises(DataError, match="neither the rows nor the ledger know"):
        why(table, name)
