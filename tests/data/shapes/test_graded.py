"""Records to rows or drops: every reason, the bounds of a grade, and what is carried along."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.building.context import Context
from luthier.data.readers import columns_seen, open_source, peek
from luthier.data.shapes.graded import REASONS, adapter
from luthier.errors import SourceError
from luthier.files import sha256_bytes
from luthier.recipe_data import Columns, Source
from luthier.schema import Draft, Drop, Provenance

COLUMNS = Columns(raters=["r1", "r2"], held_back=["r3"], keep=["age"])


def recording(seconds: float = 0.5, level: float = 0.2) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, level * np.sin(np.arange(round(8000 * seconds)) / 3), 8000, format="WAV")
    return stream.getvalue()


SOUND = recording()


def record(**changes: Any) -> dict[str, Any]:
    return {"audio": SOUND, "prompt": "Say it", "grade": 3.5, "speaker": "0036", **changes}


def context(record: dict[str, Any], **more: Any) -> Context:
    return Context(Source(name="form"), found=tuple(record), columns=COLUMNS, **more)


def convert(**changes: Any) -> Draft | Drop:
    made = record(**changes)
    return adapter(context(made))("t#1", made)


def kept(**changes: Any) -> Draft:
    found = convert(**changes)
    assert isinstance(found, Draft), found
    return found


def test_a_row_carries_everything() -> None:
    found = kept(r1=3, r2=4.0, r3="2", age=21)
    [message] = found.row.messages
    assert [part.type for part in message.content] == ["text", "audio"]
    assert message.role == "user"
    assert found.row.media == (f"sha256:{sha256_bytes(SOUND)}",)
    assert found.blobs == {found.row.media[0]: SOUND}
    target = found.row.target
    assert (target.grade, target.raters, target.held_back) == (3.5, (3.0, 4.0), (2.0,))
    assert (found.row.id, found.row.group, found.row.split, found.aux) == ("", "0036", "train", {"age": 21.0})
    assert found.row.provenance == Provenance("form", "t#1")
    assert found.seconds == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"audio": None}, "missing_audio"),
        ({"audio": "nowhere/a.wav"}, "missing_audio"),
        ({"audio": b""}, "empty_audio"),
        ({"audio": b"text"}, "unreadable_audio"),
        ({"audio": recording(level=0.0)}, "silent_audio"),
        ({"audio": recording(0.05)}, "too_short"),
        ({"audio": recording(61)}, "too_long"),
        ({"grade": None}, "missing_grade"),
        ({"grade": " "}, "missing_grade"),
        ({"grade": "good"}, "grade_not_a_number"),
        ({"grade": "3,5"}, "grade_not_a_number"),
        ({"grade": math.nan}, "grade_not_a_number"),
        ({"grade": True}, "grade_not_a_number"),
        ({"grade": 10**400}, "grade_not_a_number"),
        ({"r1": "x"}, "grade_not_a_number"),
        ({"grade": 0.5}, "grade_outside_scale"),
        ({"grade": 5.5}, "grade_outside_scale"),
        ({"r3": 9}, "grade_outside_scale"),
        ({"prompt": None}, "missing_prompt"),
        ({"prompt": " \n"}, "missing_prompt"),
        ({"prompt": "\ud800"}, "missing_prompt"),
        ({"audio": "../a.wav"}, "path_outside_folder"),
        ({"audio": "https://example.org/a.wav"}, "remote_media"),
    ],
    ids=range(23),
)
def test_reasons(changes: dict[str, Any], reason: str) -> None:
    found = convert(**changes)
    assert isinstance(found, Drop)
    assert found.reason == reason
    assert found.detail
    assert (found.source, found.origin) == ("form", "t#1")


def test_grades_at_both_ends_and_as_text() -> None:
    assert [kept(grade=g).row.target.grade for g in (1, 5, "3.5", " 4 ")] == [1.0, 5.0, 3.5, 4.0]


def test_an_absent_mark_is_left_out() -> None:
    assert kept(r1=None, r2=4).row.target.raters == (4.0,)


def test_prompts_are_normalised_and_otherwise_kept() -> None:
    assert kept(prompt=" cafe\u0301\n").row.text == " caf\u00e9\n"
    assert kept(prompt="cafe\u0301").row == kept(prompt="caf\u00e9").row


@pytest.mark.parametrize(("speaker", "group"), [(7, "7"), (7.0, "7"), (" 0036 ", "0036"), ("7.0", "7.0")])
def test_groups(speaker: object, group: str) -> None:
    assert kept(speaker=speaker).row.group == group


@pytest.mark.parametrize("speaker", [None, "", math.nan])
def test_a_row_without_a_speaker_has_no_group_yet(speaker: object) -> None:
    assert kept(speaker=speaker).row.group == ""


def test_a_recording_on_disk_equals_one_in_the_table(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(SOUND)
    made = record(audio="a.wav")
    assert adapter(context(made, folder=tmp_path))("t#1", made) == kept() == kept(audio={"bytes": SOUND, "path": "x"})


def test_an_absent_recording_is_told_as_before() -> None:
    found = convert(audio=None)
    assert isinstance(found, Drop)
    assert found.detail == "no recording in audio or wav_path or wav_file or path"


def test_one_column_for_a_role_in_the_whole_source() -> None:
    found = adapter(context({"audio": 1, "prompt": 1, "text": 1, "grade": 1}))(
        "t#2", {"audio": SOUND, "text": "other", "grade": 3}
    )
    assert isinstance(found, Drop)
    assert found.reason == "missing_prompt"


def test_the_source_may_name_its_columns() -> None:
    made = {"clip": SOUND, "asked": "Say it", "mark": 3.5, "who": "0036"}
    names = {"audio": "clip", "prompt": "asked", "grade": "mark", "group": "who"}
    assert adapter(Context(Source(name="form", columns=names), found=tuple(made)))("t#1", made) == kept()


def test_a_missing_column_names_what_is_there() -> None:
    with pytest.raises(SourceError) as caught:
        adapter(context({"audio": 1, "prompt": 1, "grades": 1}))
    text = str(caught.value)
    assert "source form" in text
    assert "audio, prompt, grades" in text
    assert "did you mean 'grades'" in text
    assert "data.columns.grade" in text


@pytest.mark.parametrize("table", ["metadata.csv", "metadata.jsonl"])
def test_a_folder_with_recordings_from_disk_to_draft(tmp_path: Path, table: str) -> None:
    (tmp_path / "a.wav").write_bytes(SOUND)
    (tmp_path / table).write_text(
        "file_name,prompt,grade\na.wav,hello,3\n"
        if table.endswith("csv")
        else '{"file_name": "a.wav", "prompt": "hello", "grade": 3}\n'
    )
    source = Source(name="form", path=str(tmp_path), license="CC0-1.0")
    reading = open_source(source)
    convert = adapter(Context(source, folder=reading.folder, found=columns_seen(peek(reading))))
    [draft] = [convert(origin, item) for origin, item in reading if isinstance(item, dict)]
    assert isinstance(draft, Draft)
    assert (draft.row.text, draft.row.target.grade) == ("hello", 3.0)
    assert draft.row.provenance == Provenance("form", f"{table}#1", "CC0-1.0")


WILD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=9),
    st.binary(max_size=30),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)


@settings(max_examples=150, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(["audio", "prompt", "grade", "speaker", "r1", "r3", "age"]), WILD))
def test_wild_records_give_a_row_or_a_listed_reason(changes: dict[str, Any]) -> None:
    found = convert(**changes)
    if isinstance(found, Drop):
        assert found.reason in REASONS
    else:
        assert 1 <= (found.row.target.grade or 0) <= 5
        assert found.row.text.encode()
