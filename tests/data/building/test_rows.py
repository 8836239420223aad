"""How a row lies in a column: its JSON and id beside those of the schema, there and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.building import ingest, shards
from luthier.data.building.build import build
from luthier.data.building.rows import encode, group_of, messages_json, texts, to_messages
from luthier.data.table import read_table
from luthier.schema import NO_TARGET, Draft, Message, Part, Provenance, Row, Target, canonical, content_id
from support.tables import chats, closes, jsonl, request

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
REFERENCE = st.binary(min_size=32, max_size=32).map(lambda data: f"sha256:{data.hex()}")
PART = st.builds(Part, st.just("text"), TEXT) | st.builds(
    lambda kind, media: Part(kind, None, media), st.sampled_from(["image", "audio", "video"]), REFERENCE
)
MORE = st.just("") | st.dictionaries(
    st.sampled_from(["tool_calls", "name", "tool_call_id"]) | TEXT.filter(lambda key: key not in ("role", "content")),
    JSON,
    min_size=1,
    max_size=3,
).map(canonical)
MESSAGE = st.builds(
    Message,
    st.sampled_from(["system", "user", "assistant", "tool"]),
    st.lists(PART, max_size=3).map(tuple),
    MORE,
)
NUMBER = st.floats(0, 6, allow_nan=False)
TARGET = st.just(NO_TARGET) | st.builds(
    Target,
    st.none() | TEXT,
    st.none() | TEXT,
    st.none() | NUMBER,
    st.lists(NUMBER, max_size=3).map(tuple),
    st.lists(NUMBER, max_size=3).map(tuple),
)
ROW = st.builds(
    Row,
    st.just(""),
    st.lists(MESSAGE, min_size=1, max_size=3).map(tuple),
    TARGET,
    TEXT,
    st.just("train"),
    st.builds(Provenance, st.just("a"), TEXT, st.just("MIT") | st.none(), st.none()),
    st.just("") | st.dictionaries(TEXT, JSON, min_size=1, max_size=3).map(canonical),
)


@given(ROW)
@settings(deadline=None, max_examples=300)
def test_the_id_and_the_json_are_those_of_the_schema(row: Row) -> None:
    found = encode(row)
    assert found.id == content_id(row.messages, row.target)
    assert found.messages.decode() == canonical([message.to_json() for message in row.messages])
    assert found.target.decode() == canonical(row.target.to_json())
    assert to_messages(found.messages) == row.messages
    assert Target.from_json(json.loads(found.target)) == row.target


def test_a_part_without_text_and_media_gets_no_null_key() -> None:
    assert messages_json((Message("user", (Part("image"),)),)) == b'[{"content":[{"type":"image"}],"role":"user"}]'


@given(st.lists(ROW, min_size=1, max_size=12, unique_by=lambda row: content_id(row.messages, row.target)))
@settings(deadline=None, max_examples=25)
def test_rows_come_back_from_a_table_as_they_went_in(rows: list[Row]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        folder = Path(place)
        drafts = dict(enumerate(rows))
        source = jsonl(folder / "a.jsonl", [{"n": n} for n in drafts], format="messages", license="MIT")
        # Media of these rows do not exist, so nothing is linked.
        patch.setattr(shards, "_link_media", lambda *_: None)
        patch.setattr(
            ingest,
            "adapter",
            lambda *_: lambda origin, record: Draft(drafts[record["n"]], {}, record["n"] / 8, {"n": record["n"]}),
        )
        from luthier.recipe_data import Duplicates

        build(request(source, duplicates=Duplicates(exact=False)), folder / "table")
        found = {int(item.aux["n"]): item for item in read_table(folder / "table").rows}
        assert set(found) == set(drafts)
        for n, row in drafts.items():
            back = found[n].row
            assert back.id == content_id(row.messages, row.target)
            assert (back.messages, back.target, back.more) == (row.messages, row.target, row.more)
            assert (back.provenance.origin, back.provenance.license) == (row.provenance.origin, "MIT")
            assert back.group == group_of(row, back.id)
            assert (found[n].seconds, found[n].weight, found[n].repeats) == (n / 8, 1.0, 1)


def test_what_an_adapter_gives_comes_back_equal(tmp_path: Path) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": "é\\u0000"}'}}
    record: dict[str, Any] = {
        "messages": [
            {"role": "user", "content": "weather\u2028in\x7f Rome 🌦"},
            {"role": "assistant", "content": "let me see", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": "sunny"},
            {"role": "assistant", "content": "sunny"},
        ],
        "score": 5.25,
        "tags": ["a", None],
    }
    build(request(jsonl(tmp_path / "a.jsonl", [record])), tmp_path / "table")
    (item,) = read_table(tmp_path / "table").rows
    assert json.loads(item.row.more)["score"] == 5.25
    assert json.loads(item.row.more)["tags"] == ["a", None]
    assert item.row.messages[0].text == "weather\u2028in\x7f Rome 🌦"
    assert json.loads(item.row.messages[1].more)["tool_calls"] == [call]
    assert json.loads(item.row.messages[2].more) == {"tool_call_id": "c"}


def test_no_part_in_parquet_has_a_null_key(tmp_path: Path) -> None:
    pictures = [{"type": "text", "text": "hi", "image": None}, {"type": "text", "text": "there", "audio": None}]
    record = {"messages": [{"role": "user", "content": pictures}, {"role": "assistant", "content": "yes"}]}
    build(request(jsonl(tmp_path / "a.jsonl", [record, *chats(3)])), tmp_path / "table")
    for path in (tmp_path / "table").glob("rows-*.parquet"):
        for text in pq.read_table(path, columns=["messages"]).column(0).to_pylist():
            for message in json.loads(text):
                assert set(message) == {"role", "content"}
                assert all(set(part) == {"type", "text"} and part["text"] is not None for part in message["content"])


def row(*messages: Message, group: str = "", target: Target = NO_TARGET) -> Row:
    return Row("", messages, target, group, "train", Provenance("a", "a#1"))


def user(text: str) -> Message:
    return Message("user", (Part("text", text),))


def test_a_group_is_the_sources_own_or_the_question_without_numbers_or_the_row() -> None:
    assert group_of(row(user("x"), group="page"), "i") == "page"
    question = group_of(row(Message("system", (Part("text", "s"),)), user("How many  are 12 Apples?")), "i")
    assert question == group_of(row(user("how many are 7 apples?")), "j")
    assert question != group_of(row(user("how many are 7 pears?")), "j")
    assert group_of(row(user(" 12 3 ")), "i") == "i"
    assert group_of(row(user("x"), target=Target(grade=3.0)), "i") == "i"
    assert group_of(row(Message("assistant", (Part("text", "x"),))), "i") == "i"
    assert group_of(row(user("half \ud800")), "i").startswith("q-")


def test_half_of_a_surrogate_pair_costs_its_row_and_not_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from luthier.data.steps import BoundStep
    from luthier.schema import Drop

    def bad(row: Row) -> Row | Drop:
        if "aaaa" in row.text:
            return replace(row, group="\ud800")
        if "baaa" in row.text:
            return replace(row, messages=(user("\ud800"),))
        return row

    def then(row: Row) -> Row | Drop:
        return Drop("a", row.provenance.origin, "custom", "gone") if row.text == "\ud800" else row

    asked = request(jsonl(tmp_path / "a.jsonl", chats(4)))
    asked = replace(asked, steps=(BoundStep("bad", bad, {}, ()), BoundStep("then", then, {}, ())))
    build(asked, tmp_path / "table")
    assert closes(tmp_path / "table")["a"]["dropped"] == {"bad_unicode": 1, "custom": 1}


def test_the_text_of_a_row_leaves_out_what_systems_say() -> None:
    import pyarrow as pa

    turns = (Message("system", (Part("text", "s"),)), user("q"), Message("assistant", (Part("text", "a"),)))
    assert texts(pa.array([messages_json(turns).decode()], pa.large_string())) == ["q\na"]
