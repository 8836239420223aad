"""Wild exam files give counts that close or one refusal, and what was read is read again the same."""

from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.data.exams import Exam, read_exam, write_items
from luthier.errors import LuthierError
from support.examfiles import Record, good, lines

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=12).filter(str.strip)
ITEM = st.tuples(TEXT, st.lists(TEXT.map(str.strip), min_size=2, max_size=5, unique=True), st.integers(0, 4))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ITEM, min_size=1, max_size=8))
def test_what_is_written_is_read_back_with_the_same_digest(tmp_path: Path, made: list[Any]) -> None:
    records = [{"question": q, "options": options, "answer": at % len(options)} for q, options, at in made]
    exam = read_exam(lines(tmp_path / "e.jsonl", records), "e", answers="0")
    write_items(exam, tmp_path / "items.jsonl")
    again = read_exam(tmp_path / "items.jsonl", "e", answers="0")
    assert again.digest == exam.digest
    assert [item.id for item in again.items] == [item.id for item in exam.items]


SPELLED = ["A", "B", "(A)", "[1,", "['x', 'y']", "1", "0", "1.0", "A: x", "sha256:00", "data:,x", "_"]
KEYS = ["text", "label", "stem", "choices", "bytes", "path", "type", "media"]
SCALAR = (
    st.none()
    | st.booleans()
    | st.integers(-2, 5)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6)
    | st.sampled_from(SPELLED)
)
CELL = st.recursive(
    SCALAR,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=8,
)
COLUMNS = (
    "question options choices answer label A B C goal sol1 sol2 sentence option1 option2 premise choice1 choice2 ctx "
    "endings input output_1 output_2 target mc1_targets sentence_good sentence_bad passage image images audio video "
    "media id group subject messages"
).split()
WILD = st.lists(st.dictionaries(st.sampled_from(COLUMNS), CELL, max_size=7), max_size=6)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(WILD, st.sampled_from(["", "0", "1", "letter", "text"]), st.binary(max_size=20), st.booleans())
def test_wild_files_give_counts_that_close_or_one_refusal(
    tmp_path: Path, records: list[Record], answers: str, tail: bytes, filled: bool
) -> None:
    fill = [good(n) for n in range(20 * len(records) + 20)] if filled else []
    path = lines(tmp_path / "e.jsonl", [*fill, *records])
    path.write_bytes(path.read_bytes() + b"{" + tail.replace(b"\n", b" "))
    try:
        exam = read_exam(path, "e", answers=answers)
    except LuthierError as error:
        assert error.mend  # noqa: PT017
        assert not filled or answers in ("0", "1", "text")
        return
    assert len(exam.items) + len(exam.unreadable) == len(fill) + len(records) + 1
    check(exam)


def check(exam: Exam) -> None:
    """What every item of every exam promises."""
    assert exam.items
    assert 0 < exam.chance <= 0.5
    assert exam.majority <= 1
    assert len({item.id for item in exam.items}) == len(exam.items)
    for item in exam.items:
        assert len(item.options) == len(set(item.options)) >= 2
        assert all(option and option == option.strip() for option in item.options)
        assert 0 <= item.answer < len(item.options)
        assert all(part.media in exam.blobs for part in item.media)
