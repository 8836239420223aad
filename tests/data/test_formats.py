"""Records of every format to rows or drops: roles, parts, media, leftovers, and which format a table has."""

import io
import wave
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.building.context import Context
from luthier.data.formats import FORMATS, REASONS, adapter, detect
from luthier.errors import DataError, RequestError
from luthier.recipe_data import Source
from luthier.schema import Draft, Drop, Row


def wav(seconds: float = 0.5) -> bytes:
    held = io.BytesIO()
    with wave.open(held, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(b"\x00\x10\x00\xf0" * int(seconds * 8000))
    return held.getvalue()


def read(name: str, record: dict[str, Any], **source: Any) -> Draft | Drop:
    folder = source.pop("folder", Path())
    context = Context(Source(name="here", **source), folder=folder, found=tuple(record))
    return adapter(name, context)("file:1", record)


def row(name: str, record: dict[str, Any], **source: Any) -> Row:
    found = read(name, record, **source)
    assert isinstance(found, Draft), found
    return found.row


def said(found: Row) -> list[tuple[str, list[str | None]]]:
    return [(message.role, [part.text for part in message.content]) for message in found.messages]


TALK = [("user", ["hi"]), ("assistant", ["hello"])]


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("sharegpt", {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}),
        ("sharegpt", {"conversation": [{"from": "prompter", "value": "hi"}, {"from": "bing", "value": "hello"}]}),
        ("sharegpt", {"conversations": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}),
        ("sharegpt", {"conversations": '[{"from":"human","value":"hi"},{"from":"gpt","value":"hello"}]'}),
        ("sharegpt", {"conversations": [{"user": "human", "text": "hi"}, {"user": "gpt", "text": "hello"}]}),
        ("messages", {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}),
        (
            "messages",
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "hi", "image": None}], "name": None},
                    {"role": "assistant", "content": [{"type": "text", "text": "hello", "image": None}]},
                ]
            },
        ),
        ("ultrachat", {"id": "1", "data": ["hi", "hello"]}),
        ("ultrachat", {"prompt": "hi", "dialogue": ["hello"]}),
        ("ultrachat", {"prompt": "hi", "dialogue": ["hi", "hello"]}),
        ("alpaca", {"instruction": "hi", "input": "", "output": "hello"}),
        ("prompt_completion", {"question": "hi", "answer": "hello"}),
        (
            "prompt_completion",
            {"prompt": [{"role": "user", "content": "hi"}], "completion": [{"role": "assistant", "content": "hello"}]},
        ),
    ],
)
def test_one_talk_in_many_spellings_is_one_row(name: str, record: dict[str, Any]) -> None:
    assert said(row(name, record)) == TALK
    assert detect([record]) == name


def test_a_short_way_and_a_long_way_agree() -> None:
    turns = [{"from": "system", "value": "s"}, {"from": "human", "value": "é"}, {"from": "gpt", "value": "b"}]
    short = row("sharegpt", {"conversations": turns, "score": 4.5, "source": "x"})
    long = row("sharegpt", {"conversations": tuple(turns), "score": 4.5, "source": "x"})
    assert short == long
    assert short.more == '{"score":4.5,"source":"x"}'


def test_a_column_beside_a_talk_without_a_prompt_is_not_taken_for_one() -> None:
    assert row("ultrachat", {"messages": [{"role": "system", "content": "s"}], "score": 1}).more == '{"score":1}'


def test_numbers_become_their_text_and_other_kinds_do_not() -> None:
    assert said(row("alpaca", {"instruction": 5, "output": 5.0})) == [("user", ["5"]), ("assistant", ["5.0"])]
    for value in (True, {"a": 1}, float("nan"), b"x"):
        found = read("sharegpt", {"conversations": [{"from": "human", "value": value}]})
        assert isinstance(found, Drop)
        assert found.reason == "not_text"


@pytest.mark.parametrize(
    ("name", "record", "reason"),
    [
        ("sharegpt", {"conversations": None}, "no_messages"),
        ("sharegpt", {"conversations": []}, "no_messages"),
        ("sharegpt", {}, "no_messages"),
        ("sharegpt", {"conversations": [{"from": "narrator", "value": "x"}]}, "unknown_role"),
        ("sharegpt", {"conversations": [{"from": "human", "value": None}]}, "not_text"),
        ("sharegpt", {"conversations": [{"from": "human", "value": "a\0b"}]}, "nul_character"),
        ("sharegpt", {"conversations": [{"from": "human", "value": "a\ud800"}]}, "bad_unicode"),
        ("sharegpt", {"conversations": [{"from": "human", "value": "<image>\nWhat?"}]}, "media_count"),
        ("sharegpt", {"images": ["a.png"], "conversations": [{"from": "human", "value": "What?"}]}, "media_count"),
        ("sharegpt", {"images": [], "conversations": [{"from": "human", "value": "<image> What?"}]}, "media_count"),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "unknown_part"),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "media_count"),
        ("messages", {"messages": [{"role": "assistant", "content": None}]}, "not_text"),
        ("alpaca", {"instruction": None, "output": "x"}, "missing_prompt"),
        ("alpaca", {"instruction": "x", "output": "y", "history": True}, "not_text"),
        ("alpaca", {"instruction": "x", "output": None}, "missing_answer"),
        ("prompt_completion", {"prompt": "x", "completion": None}, "missing_answer"),
        ("image_caption", {"image": None, "text": "x"}, "missing_media"),
        ("image_caption", {"image": {"path": "../a.png"}, "text": "x"}, "path_outside_folder"),
    ],
)
def test_what_makes_no_row_is_dropped_with_its_reason(name: str, record: dict[str, Any], reason: str) -> None:
    found = read(name, record)
    assert isinstance(found, Drop)
    assert (found.reason, found.source, found.origin) == (reason, "here", "file:1")
    assert reason in REASONS


def test_tool_calls_and_names_stay_with_their_turn() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns = [
        {"role": "user", "content": "x", "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "y", "tool_call_id": "1"},
    ]
    found = row("messages", {"messages": turns, "tools": [{"name": "f"}]})
    assert found.messages[0].more == '{"name":"ann"}'
    assert found.messages[1].content == ()
    assert found.messages[1].to_json()["tool_calls"] == [call]
    assert found.messages[2].to_json()["tool_call_id"] == "1"
    assert found.more == '{"tools":[{"name":"f"}]}'


def test_a_function_call_of_sharegpt_is_a_tool_call_of_the_assistant() -> None:
    turns = [{"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'}]
    message = row("sharegpt", {"conversations": turns}).messages[0]
    assert (message.role, message.content) == ("assistant", ())
    assert message.to_json()["tool_calls"][0]["function"] == {"name": "f", "arguments": {"a": 1}}


def test_columns_of_another_name_are_mapped_and_the_group_is_kept() -> None:
    record = {"ask": "hi", "reply": "hello", "page": 7.0}
    found = row("prompt_completion", record, columns={"prompt": "ask", "completion": "reply", "group": "page"})
    assert said(found) == TALK
    assert (found.group, found.more) == ("7", '{"page":7.0}')


def test_leftovers_that_json_cannot_hold_are_named() -> None:
    found = row("text", {"text": "x", "raw": b"1", "nan": float("nan"), "big": 2**70, "none": None})
    assert found.more == '{"big":1180591620717411303424,"dropped":["raw","nan"],"none":null}'


def test_the_extra_of_a_part_is_named() -> None:
    part = {"type": "text", "text": "x", "cache_control": {"a": 1}}
    assert (
        row("messages", {"messages": [{"role": "user", "content": [part]}]}).more
        == '{"dropped":["text.cache_control"]}'
    )


def test_sound_takes_the_place_of_its_token_and_its_length_is_counted(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav())
    turns = [{"from": "human", "value": "<audio>\nWhat?"}, {"from": "gpt", "value": "A tone."}]
    found = read("sharegpt", {"conversations": turns, "audios": ["a.wav"]}, folder=tmp_path)
    assert isinstance(found, Draft)
    assert [part.type for part in found.row.messages[0].content] == ["audio", "text"]
    assert found.blobs == {found.row.media[0]: wav()}
    assert found.seconds == pytest.approx(0.5)


def test_placeholders_take_the_media_of_the_columns_in_order() -> None:
    content = [{"type": "audio"}, {"type": "text", "text": "or"}, {"type": "audio", "text": None}]
    record = {"messages": [{"role": "user", "content": content}], "audios": [wav(0.2), wav(0.4)]}
    found = read("messages", record)
    assert isinstance(found, Draft)
    assert [found.blobs[name] for name in found.row.media] == [wav(0.2), wav(0.4)]


def test_inline_sound_is_read() -> None:
    import base64

    part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(wav()).decode(), "format": "wav"}}
    assert row("messages", {"messages": [{"role": "user", "content": [part]}]}).media


def test_a_label_is_a_choice_and_a_text_an_answer() -> None:
    labelled = row("image_caption", {"audio": wav(), "label": 3})
    assert (labelled.target.choice, len(labelled.messages)) == ("3", 1)
    told = row("image_caption", {"audio": wav(), "text": "A tone."})
    assert told.messages[1].text == "A tone."


@pytest.mark.parametrize(
    ("records", "name"),
    [
        ([{"conversations": None}, {"conversations": [{"from": "human", "value": "x"}]}], "sharegpt"),
        ([{"conversations": None}] * 3, "sharegpt"),
        ([{"prompt": "x", "prompt_id": "1", "messages": [{"role": "user", "content": "x"}]}], "ultrachat"),
        ([{"audio": b"", "grade": 3, "text": "x"}], "graded"),
        ([{"image": b"", "question": "x", "answer": "y"}], "prompt_completion"),
        ([{"file_name": "a.png", "label": "cat"}], "image_caption"),
        ([{"text": "x"}, {"text": None}], "text"),
    ],
)
def test_the_format_is_what_most_records_have(records: list[dict[str, Any]], name: str) -> None:
    assert detect(records) == name


def test_columns_that_fit_nothing_are_listed_with_what_is_missing() -> None:
    with pytest.raises(DataError, match=r"columns a, output.*alpaca needs instruction;") as caught:
        detect([{"a": 1, "output": "x"}])
    assert "columns:" in caught.value.mend
    assert detect([{"a": "q", "b": "c"}], {"prompt": "a", "completion": "b"}) == "prompt_completion"


def test_a_misspelt_format_is_answered_with_the_nearest() -> None:
    with pytest.raises(RequestError, match="did you mean sharegpt"):
        adapter("share_gpt", Context(Source()))


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5) | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["from", "value", "role", "content", "type", "text", "image", "audio", "x"]), inner
        )
    ),
    max_leaves=12,
)
COLUMNS = (
    "conversations messages data prompt instruction input output history completion text image audio label system x"
).split()


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([name for name in FORMATS if name != "graded"]), st.dictionaries(st.sampled_from(COLUMNS), ANYTHING)
)
def test_any_record_is_a_draft_or_a_drop_with_a_known_reason(name: str, record: dict[str, Any]) -> None:
    found = read(name, record)
    assert isinstance(found, Draft) or found.reason in REASONS


def test_a_question_about_a_recording_needs_no_token() -> None:
    found = row("prompt_completion", {"audio": wav(), "question": "What?", "answer": "A tone."})
    assert [part.type for part in found.messages[0].content] == ["audio", "text"]


def test_a_picture_is_checked_and_kept_by_its_hash(tmp_path: Path) -> None:
    pytest.importorskip("luthier.data.pictures")
    from PIL import Image

    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    found = row("image_caption", {"file_name": "a.png", "text": "Red."}, folder=tmp_path)
    assert [part.type for part in found.messages[0].content] == ["image", "text"]
    assert found.messages[0].content[1].text == "Describe the image."
    assert found.more == ""
    (tmp_path / "a.png").write_bytes(b"not a picture")
    assert isinstance(read("image_caption", {"file_name": "a.png", "text": "Red."}, folder=tmp_path), Drop)
