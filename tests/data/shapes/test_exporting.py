"""There and back: rows exported and read again are the same rows, and what a format cannot hold is named."""

import hashlib
import io
import wave
from collections import Counter
from pathlib import Path
from typing import Any

import jinja2
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.building.context import Context
from luthier.data.formats import EXPORTS, adapter, export
from luthier.errors import RequestError
from luthier.recipe_data import Source
from luthier.schema import Draft, Message, Part, Provenance, Row, Target, canonical

WHERE = Provenance("here", "file:1")
READ_BY = {"trl": "messages", "openai": "messages"}


def wav(loudness: int) -> bytes:
    held = io.BytesIO()
    with wave.open(held, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes((loudness).to_bytes(2, "little") * 3200)
    return held.getvalue()


SOUNDS = {hashlib.sha256(data).hexdigest(): data for data in (wav(5000), wav(9000))}
MEDIA = [Part("audio", None, f"sha256:{name}") for name in SOUNDS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("table")
    (found / "media").mkdir()
    for name, data in SOUNDS.items():
        (found / "media" / name).write_bytes(data)
    return found


def row(*messages: Message, more: str = "", target: Target | None = None) -> Row:
    return Row("", messages, target or Target(), "", "train", WHERE, more)


def say(role: Any, *content: str | Part, more: str = "") -> Message:
    parts = (Part("text", part) if isinstance(part, str) else part for part in content)
    return Message(role, tuple(parts), more)


def out(name: str, *rows: Row) -> tuple[list[dict[str, Any]], Counter[str]]:
    losses: Counter[str] = Counter()
    return list(export(rows, name, losses)), losses


def back(name: str, record: dict[str, Any], folder: Path = Path()) -> Row:
    # Through JSON, as a file would hold it.
    record = orjson.loads(orjson.dumps(record))
    context = Context(Source(name="here"), folder=folder, found=tuple(record))
    found = adapter(READ_BY.get(name, name), context)("file:1", record)
    assert isinstance(found, Draft), found
    return found.row


PLAIN = [
    (
        "sharegpt",
        {
            "conversations": [
                {"from": "system", "value": "s"},
                {"from": "human", "value": "a\n"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {"a": [1]}}'},
                {"from": "tool", "value": "1"},
                {"from": "gpt", "value": "é"},
            ],
            "score": 5.1,
            "source": "x",
            "tools": "[]",
        },
    ),
    ("sharegpt", {"system": "s", "conversations": [{"from": "user", "value": "a"}, {"from": "bing", "value": "b"}]}),
    (
        "messages",
        {
            "messages": [
                {"role": "developer", "content": "s"},
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                    "name": "n",
                },
                {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f"}}]},
                {"role": "tool", "content": "b", "tool_call_id": "1"},
            ],
            "tools": [{"name": "f", "x": None}],
        },
    ),
    (
        "ultrachat",
        {
            "prompt": "a",
            "prompt_id": "7",
            "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        },
    ),
    ("ultrachat", {"prompt": "other", "messages": [{"role": "user", "content": "a"}]}),
    ("alpaca", {"instruction": "a\nb", "input": "c\nd", "output": "e"}),
    ("alpaca", {"instruction": "", "input": "c", "output": ""}),
    ("alpaca", {"instruction": "a", "input": "", "output": "b", "history": [["q", "r"]], "system": "s", "n": 1}),
    ("prompt_completion", {"prompt": "a", "completion": "b", "id": 3}),
    (
        "prompt_completion",
        {
            "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}],
            "completion": [{"role": "assistant", "content": "b"}],
        },
    ),
    ("text", {"text": "a <image> b", "url": "u"}),
]


@pytest.mark.parametrize(("name", "record"), PLAIN)
def test_a_plain_record_comes_back_as_it_was(name: str, record: dict[str, Any]) -> None:
    records, losses = out(name, back(name, record))
    assert records == [record]
    assert not losses


ANY_TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
# Hypothesis takes constants from our code, so that it does try these.
TEXT = ANY_TEXT.filter(lambda text: not any(token in text for token in ("<image>", "<audio>", "<video>")))
EXTRA = st.sampled_from(["", '{"name":"n"}', '{"weight":0.5}'])
MORE = st.dictionaries(st.sampled_from(["score", "source", "note"]), st.integers(0, 9) | TEXT | st.none(), max_size=2)
ROLES = st.sampled_from(["system", "user", "assistant", "tool"])
ANY_PART = TEXT.map(lambda text: Part("text", text)) | st.sampled_from(MEDIA)
FREE_PART = ANY_TEXT.map(lambda text: Part("text", text)) | st.sampled_from(MEDIA)


@st.composite
def contents(draw: st.DrawFn) -> tuple[Part, ...]:
    """Parts that a text with tokens can hold: never two texts side by side, no empty text beside another part."""
    found: list[Part] = []
    for _ in range(draw(st.integers(1, 3))):
        part = draw(ANY_PART)
        if part.type != "text" or (part.text and not (found and found[-1].type == "text")):
            found.append(part)
    return tuple(found) or (Part("text", draw(TEXT)),)


CALL = Message("assistant", (), '{"tool_calls":[{"function":{"arguments":{"a":1},"name":"f"},"type":"function"}]}')
FREE = st.builds(Message, ROLES, st.lists(FREE_PART, max_size=3).map(tuple), EXTRA) | st.just(CALL)
TOKENED = st.builds(Message, ROLES, contents(), EXTRA) | st.just(CALL)
TURN = st.tuples(contents(), contents())


def rows_for(name: str) -> st.SearchStrategy[Row]:
    """Rows that a format can hold whole."""
    pairs = st.lists(TURN, min_size=1, max_size=3).map(
        lambda turns: [
            Message(role, part) for turn in turns for role, part in zip(("user", "assistant"), turn, strict=True)
        ]  # type: ignore[arg-type]
    )
    messages: st.SearchStrategy[list[Message]]
    if name in ("messages", "ultrachat", "trl"):
        messages = st.lists(FREE, min_size=1, max_size=4)
    elif name == "openai":
        messages = st.lists(
            st.builds(Message, ROLES, st.lists(TEXT.map(lambda t: Part("text", t))).map(tuple)), min_size=1
        )
    elif name == "sharegpt":
        messages = st.lists(TOKENED, min_size=1, max_size=4)
    elif name == "alpaca":
        messages = pairs
    elif name == "prompt_completion":
        messages = pairs | st.lists(FREE, min_size=2, max_size=3).map(lambda found: [*found, say("assistant", "x")])
    elif name == "text":
        messages = TEXT.map(lambda text: [say("assistant", text)])
    else:
        messages = st.tuples(st.sampled_from(MEDIA), TEXT, TEXT).map(
            lambda it: [say("user", it[0], it[1]), say("assistant", it[2])]
        )
    return st.builds(lambda found, more: row(*found, more=canonical(more) if more else ""), messages, MORE)


@pytest.mark.parametrize("name", EXPORTS)
def test_there_and_back_is_the_same_row(name: str, folder: Path) -> None:
    @settings(max_examples=60, deadline=None)
    @given(rows_for(name))
    def check(first: Row) -> None:
        records, losses = out(name, first)
        assert not losses
        assert back(name, records[0], folder) == first

    check()


@pytest.mark.parametrize(
    ("name", "given_row", "loss", "written"),
    [
        ("sharegpt", row(say("user", "a", "b")), "bounds between parts", 1),
        ("sharegpt", row(say("user", "<image>")), "row skipped: a text that holds a placeholder's token", 0),
        ("messages", row(say("user", "a"), target=Target(grade=3.0)), "target", 1),
        (
            "alpaca",
            row(say("user", "a"), say("user", "b")),
            "row skipped: turns that are not question and answer by turns",
            0,
        ),
        ("alpaca", row(say("user", "a", more='{"name":"n"}'), say("assistant", "b")), "a turn's name", 1),
        ("alpaca", row(say("user", "a"), CALL), "tool_calls", 1),
        ("prompt_completion", row(say("user", "a")), "row skipped: no answer at the end", 0),
        ("text", row(say("user", "a"), say("assistant", "b")), "row skipped: turns beyond one of the assistant", 0),
        ("image_caption", row(say("user", "a")), "row skipped: not media and then a question", 0),
        ("openai", row(say("user", Part("video", None, "sha256:0"))), "row skipped: video", 0),
        ("messages", row(say("user", "a"), more='{"messages":[]}'), "column messages", 1),
        ("messages", row(), "row skipped: no messages", 0),
    ],
)
def test_what_a_format_cannot_hold_is_named(name: str, given_row: Row, loss: str, written: int) -> None:
    records, losses = out(name, given_row)
    assert losses[loss] == 1
    assert len(records) == written


def test_a_choice_goes_out_as_a_label_and_comes_back(folder: Path) -> None:
    first = row(say("user", MEDIA[0], "Which?"), target=Target(choice="cat"))
    records, losses = out("image_caption", first)
    assert back("image_caption", records[0], folder) == first
    assert not losses


def test_trl_has_placeholders_and_a_column_of_media_in_order() -> None:
    picture = Part("image", None, "sha256:ab")
    records, _ = out("trl", row(say("user", picture, "and", picture)), row(say("user", "none")))
    assert records[0]["messages"][0]["content"] == [
        {"type": "image"},
        {"type": "text", "text": "and"},
        {"type": "image"},
    ]
    assert records[0]["images"] == ["media/ab", "media/ab"]
    assert records[1]["images"] == []


def test_names_of_chat_logs_do_not_reach_messages() -> None:
    turns = [{"from": "user", "value": "a"}, {"from": "bing", "value": "b"}]
    first = back("sharegpt", {"conversations": turns})
    records, _ = out("messages", first)
    assert [turn["role"] for turn in records[0]["messages"]] == ["user", "assistant"]
    assert back("messages", records[0]) == first


def test_openai_names_pictures_and_sound_its_way() -> None:
    content = out("openai", row(say("user", Part("image", None, "sha256:ab"), MEDIA[0])))[0][0]["messages"][0][
        "content"
    ]
    assert content[0] == {"type": "image_url", "image_url": {"url": "media/ab"}}
    assert content[1]["type"] == "input_audio"


def test_an_unknown_format_is_refused_before_a_row_is_read() -> None:
    with pytest.raises(RequestError, match="did you mean alpaca"):
        export(iter(()), "alpacca", Counter())


# The test that many chat templates of vision models make: a key, not a type, tells a picture.
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}:{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for content in m.content %}{% if 'image' in content %}<PAD>{% else %}{{ content.text }}{% endif %}{% endfor %}"
    "{% endif %};{% endfor %}"
)


def test_null_keys_of_arrow_do_not_become_pictures(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "hi"}, {"type": "text", "text": "you", "image": None}]
    table = pa.Table.from_pylist([{"messages": [{"role": "user", "content": parts}]}])
    spoilt = table.to_pylist()[0]
    render = jinja2.Environment(autoescape=False).from_string(TEMPLATE).render
    assert render(spoilt) == "user:<PAD><PAD>;"
    records, _ = out("messages", back("messages", spoilt))
    assert render(records[0]) == "user:hiyou;"
    kept = pa.table({"messages": [orjson.dumps(records[0]["messages"]).decode()]})
    pq.write_table(kept, tmp_path / "a.parquet")
    again = pq.read_table(tmp_path / "a.parquet").to_pylist()[0]
    assert orjson.loads(again["messages"]) == records[0]["messages"]
    assert back("messages", again) == back("messages", spoilt)
