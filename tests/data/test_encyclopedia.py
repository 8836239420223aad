"""The fictional encyclopedia: what its exams ask is told in its text, in no other form, and nothing else helps."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from luthier.data.encyclopedia import CHOOSING, CORPUS, KINDS, REPORT, SHARE, write_encyclopedia
from luthier.data.exams.reader import read_exam
from luthier.errors import ExistsError, RequestError
from luthier.files import read_jsonl

EXAMS = (CHOOSING, REPORT)
ATTRIBUTES = [attribute for attributes in KINDS.values() for attribute in attributes]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("made") / "data"
    write_encyclopedia(made, SHARE)
    return made


def asked_of(question: str) -> tuple[int, str]:
    """Which attribute a question asks for, and the entry's name."""
    for number, attribute in enumerate(ATTRIBUTES):
        before, after = attribute.question.split("{n}")
        if question.startswith(before) and question.endswith(after):
            return number, question[len(before) : len(question) - len(after)]
    raise AssertionError(question)


def prose(folder: Path) -> dict[str, str]:
    """All articles on an entry, one after another."""
    found: dict[str, str] = {}
    for row in read_jsonl(folder / CORPUS):
        if not row["text"].startswith("Question: "):
            found[row["entry"]] = found.get(row["entry"], "") + row["text"] + "\n"
    return found


def told(number: int, name: str, option: str) -> list[str]:
    """The sentences that tell the fact which an option claims, in all wordings."""
    attribute = ATTRIBUTES[number]
    value = next(value for value in attribute.values if attribute.answer.format(v=value) == option)
    sentences = [sentence.format(n=name, v=value) for sentence in attribute.sentences]
    return [sentence[0].upper() + sentence[1:] for sentence in sentences]


def test_equal_seeds_give_equal_bytes_and_others_do_not(folder: Path, tmp_path: Path) -> None:
    write_encyclopedia(tmp_path / "same", SHARE)
    write_encyclopedia(tmp_path / "other", SHARE, seed=18)
    for name in (CORPUS, *EXAMS):
        assert (tmp_path / "same" / name).read_bytes() == (folder / name).read_bytes()
        assert (tmp_path / "other" / name).read_bytes() != (folder / name).read_bytes()


def test_every_right_option_is_told_in_prose_several_times_and_no_wrong_one_is(folder: Path) -> None:
    articles = prose(folder)
    for exam in EXAMS:
        for item in read_jsonl(folder / exam):
            number, name = asked_of(item["question"])
            counts = [
                sum(articles[name].count(sentence) for sentence in told(number, name, option))
                for option in item["options"]
            ]
            assert counts[item["answer"]] == 6
            assert counts[1 - item["answer"]] == 0


def test_no_question_of_an_exam_stands_in_the_text_or_in_the_other_exam_but_its_kind_does(folder: Path) -> None:
    texts = [row["text"] for row in read_jsonl(folder / CORPUS)]
    answered = [text.partition("\n")[0].removeprefix("Question: ") for text in texts if text.startswith("Question: ")]
    first, second = ({item["question"] for item in read_jsonl(folder / name)} for name in EXAMS)
    assert len(first) == len(second) == len(answered) / 2 == 3 * SHARE
    assert not first & second
    assert not (first | second) & set(answered)
    kinds = Counter(asked_of(question)[0] for question in answered)
    assert set(kinds) == set(range(len(ATTRIBUTES)))
    assert len(set(kinds.values())) == 1


@pytest.mark.parametrize("name", EXAMS)
def test_neither_the_place_nor_the_frequency_of_a_value_tells_which_option_is_right(folder: Path, name: str) -> None:
    items = list(read_jsonl(folder / name))
    assert Counter(item["answer"] for item in items) == {0: len(items) / 2, 1: len(items) / 2}
    right, wrong = Counter[Any](), Counter[Any]()
    for item in items:
        number, _ = asked_of(item["question"])
        right[number, item["options"][item["answer"]]] += 1
        wrong[number, item["options"][1 - item["answer"]]] += 1
    assert right == wrong
    assert len(right) == sum(len(attribute.values) for attribute in ATTRIBUTES)


def test_the_exams_are_read_whole_as_their_writer_meant_them(folder: Path) -> None:
    for name in EXAMS:
        exam = read_exam(folder / name, name)
        written = list(read_jsonl(folder / name))
        assert [(item.question, list(item.options), item.answer) for item in exam.items] == [
            (item["question"], item["options"], item["answer"]) for item in written
        ]
        assert (exam.unreadable, exam.chance, exam.majority) == ([], 0.5, 0.5)


def test_a_number_of_entries_that_cannot_be_balanced_is_refused_and_nothing_is_overwritten(
    folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match="30 entries"):
        write_encyclopedia(tmp_path / "data", 30)
    assert not (tmp_path / "data").exists()
    with pytest.raises(ExistsError):
        write_encyclopedia(folder, SHARE)
