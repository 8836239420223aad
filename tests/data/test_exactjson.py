"""Integers beyond 64 bits stay what they are, from a file through rows to an exported file and back."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data import exactjson
from luthier.data.building.context import Context
from luthier.data.formats import adapter, export
from luthier.data.readers import open_source
from luthier.recipe_data import Source
from luthier.schema import Draft, Row, content_id

BIG = 12345678901234567890121
NUMBERS = st.integers() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    NUMBERS | st.none() | st.booleans() | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("ab9", max_size=3), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_every_value_is_what_the_standard_library_reads(value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False)
    found, expected = exactjson.loads(text), json.loads(text)
    assert (found, repr(found)) == (expected, repr(expected))
    assert repr(exactjson.loads(text.encode())) == repr(expected)


@pytest.mark.parametrize("edge", [2**64, 2**64 - 1, 2**63, -(2**63), -(2**63) - 1])
def test_the_edges_of_64_bits_are_exact(edge: int) -> None:
    found = exactjson.loads(f"[{edge}]")
    assert found == [edge]
    assert type(found[0]) is int


@pytest.mark.parametrize("text", ["[NaN, 1e30]", '["\\ud800", 1e30]', "[" * 5000 + "]" * 5000, "[1e30", ""])
def test_what_orjson_refuses_stays_refused(text: str) -> None:
    with pytest.raises(orjson.JSONDecodeError):
        exactjson.loads(text)


def test_numbers_too_deep_for_a_second_reading_are_refused_by_the_same_error() -> None:
    text = "[" * 1000 + str(BIG) + "]" * 1000
    try:
        found = exactjson.loads(text)
    except orjson.JSONDecodeError:
        return
    for _ in range(1000):
        (found,) = found
    assert found == BIG


def records(form: str) -> dict[str, Any]:
    asked = {"from": "human", "value": "add"}
    call = {"name": "add", "arguments": {"n": BIG}}
    if form == "function_call":
        turns = [asked, {"from": "function_call", "value": json.dumps(call)}]
        return {"conversations": turns, "serial": BIG}
    calls = [{"type": "function", "id": "c1", "function": call}]
    return {
        "messages": [{"role": "user", "content": "add"}, {"role": "assistant", "content": None, "tool_calls": calls}],
        "serial": BIG,
        "deep": [{"n": -BIG}],
    }


def rows(path: Path, form: str) -> list[Row]:
    found = []
    source = Source(name="s", path=str(path), format=form)
    reading = open_source(source)
    adapt = adapter(form, Context(source))
    for origin, record in reading:
        assert isinstance(record, dict), record
        draft = adapt(origin, record)
        assert isinstance(draft, Draft), draft
        found.append(draft.row)
    return found


@pytest.mark.parametrize("spelling", ["compact", "spaced", "list"])
@pytest.mark.parametrize("form", ["function_call", "tool_calls"])
def test_a_big_number_survives_import_export_and_import(tmp_path: Path, form: str, spelling: str) -> None:
    record = records(form)
    separators = (",", ":") if spelling == "compact" else (", ", ": ")
    text = json.dumps([record, record] if spelling == "list" else record, separators=separators)
    first = tmp_path / ("a.json" if spelling == "list" else "a.jsonl")
    first.write_text(text if spelling == "list" else f"{text}\n{text}\n")
    name = "sharegpt" if form == "function_call" else "messages"
    before = rows(first, name)
    assert len(before) == 2
    assert str(BIG) in before[0].messages[1].more
    assert json.loads(before[0].more)["serial"] == BIG
    for to in ("sharegpt", "messages", "trl"):
        second = tmp_path / f"{to}.jsonl"
        second.write_text("".join(json.dumps(made) + "\n" for made in export(before, to, Counter())))
        after = rows(second, "messages" if to == "trl" else to)
        ids = [[content_id(row.messages, row.target) for row in found] for found in (before, after)]
        assert ids[0] == ids[1]
        assert json.loads(after[0].more)["serial"] == BIG
