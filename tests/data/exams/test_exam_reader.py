"""Every shape of an exam gives the right option, wild files give counts or one clear refusal, and nothing is lost."""

import json
import string
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from luthier.data.exams import exam_digest, exam_record, read_exam, write_items
from luthier.data.leaks.examtexts import exam_items
from luthier.errors import DataError, SourceError
from luthier.files import read_jsonl
from luthier.recipe_data import Source
from support.examfiles import Record, good, lines


def arc(key: str, labels: str = "ABCD") -> Record:
    return {"question": f"Why {key}?", "choices": {"text": ["w", "x", "y", "z"], "label": [*labels]}, "answerKey": key}


def old_arc(key: str) -> Record:
    choices = [{"text": f"t{label}", "label": label} for label in "1234"]
    return {"id": f"old{key}", "question": {"stem": "Why?", "choices": choices}, "answerKey": key}


SHAPES: list[tuple[str, str, list[Record], list[tuple[str, tuple[str, ...], int]]]] = [
    (
        "piqa",
        "0",
        [{"goal": "G", "sol1": "a", "sol2": "b", "label": label} for label in (1, 0)],
        [("G", ("a", "b"), 1), ("G", ("a", "b"), 0)],
    ),
    (
        "winogrande",
        "1",
        [{"sentence": "The _ fits.", "option1": "cup", "option2": "box", "answer": answer} for answer in "21"],
        [("The _ fits.", ("cup", "box"), 1), ("The _ fits.", ("cup", "box"), 0)],
    ),
    (
        "copa",
        "0",
        [
            {"premise": "It fell.", "choice1": "c", "choice2": "d", "question": q, "label": 1}
            for q in ("cause", "effect")
        ],
        [
            ("It fell.\nWhat was the cause of this?", ("c", "d"), 1),
            ("It fell.\nWhat happened as a result?", ("c", "d"), 1),
        ],
    ),
    (
        "boolq",
        "0",
        [{"question": "is it", "passage": "It is.", "answer": answer} for answer in (True, False)],
        [("is it", ("no", "yes"), 1), ("is it", ("no", "yes"), 0)],
    ),
    (
        "boolq",
        "0",
        [{"question": "is it", "passage": "It is.", "label": 1, "idx": 7}],
        [("is it", ("no", "yes"), 1)],
    ),
    ("arc", "letter", [arc("B"), arc("3", "1234")], [("Why B?", (*"wxyz",), 1), ("Why 3?", (*"wxyz",), 2)]),
    ("arc", "letter", [old_arc("1"), old_arc("2")], [("Why?", ("t1", "t2", "t3", "t4"), at) for at in (0, 1)]),
    (
        "mmlu",
        "0",
        [{"question": "Q", "subject": "s", "choices": [*"wxyz"], "answer": answer} for answer in (0, 2)],
        [("Q", (*"wxyz",), 0), ("Q", (*"wxyz",), 2)],
    ),
    (
        "hellaswag",
        "0",
        [{"ctx": "C", "endings": [*"wxyz"], "label": "1", "ind": 4}],
        [("C", (*"wxyz",), 1)],
    ),
    (
        "letters",
        "letter",
        [{"question": "Q", "A": "x", "B": "y", "C": "z", "answer": answer} for answer in "CA"],
        [("Q", (*"xyz",), 2), ("Q", (*"xyz",), 0)],
    ),
    ("options", "text", [{"question": "Q", "options": ["x", "y"], "answer": " y "}], [("Q", ("x", "y"), 1)]),
    ("options", "letter", [{"question": "Q", "options": {"A": "x", "B": "y"}, "answer": "B"}], [("Q", ("x", "y"), 1)]),
    (
        "options",
        "1",
        [{"question": "Q", "options": ["x", "y"], "answer": answer} for answer in (1, 2)],
        [("Q", ("x", "y"), 0), ("Q", ("x", "y"), 1)],
    ),
    (
        "options",
        "letter",
        [{"id": "7", "question": "Q", "options": ["A: x", "B: y"], "correct": answer} for answer in ("B", "A: x")],
        [("Q", ("x", "y"), 1), ("Q", ("x", "y"), 0)],
    ),
    (
        "options",
        "text",
        [{"question": "Which?", "choices": ["True", "False"], "answer": False}],
        [("Which?", ("True", "False"), 1)],
    ),
    (
        "blimp",
        "0",
        [{"sentence_good": "He runs.", "sentence_bad": "He run."}],
        [("Which of these sentences is correct?", ("He runs.", "He run."), 0)],
    ),
    (
        "mc1",
        "0",
        [{"question": "Q", "mc1_targets": {"choices": ["x", "y", "z"], "labels": [1, 0, 0]}}],
        [("Q", (*"xyz",), 0)],
    ),
    (
        "options",
        "0",
        [{"question": "Q", "choices": ["x", "y"], "label": label} for label in (0, 1)],
        [("Q", ("x", "y"), 0), ("Q", ("x", "y"), 1)],
    ),
    (
        "llmbar",
        "1",
        [{"input": "Say hi.", "output_1": "hi", "output_2": "no", "label": label} for label in (2, 1)],
        [("Say hi.\nWhich output follows this instruction better?", ("hi", "no"), at) for at in (1, 0)],
    ),
    (
        "inspect",
        "letter",
        [{"input": "Q", "choices": ["x", "y"], "target": target} for target in ("B", ["A"])],
        [("Q", ("x", "y"), 1), ("Q", ("x", "y"), 0)],
    ),
]


@pytest.mark.parametrize(("shape", "base", "records", "expected"), SHAPES)
def test_every_shape_gives_its_question_options_and_right_one(
    tmp_path: Path, shape: str, base: str, records: list[Record], expected: list[tuple[str, tuple[str, ...], int]]
) -> None:
    (tmp_path / "list.json").write_text(json.dumps(records))
    pq.write_table(
        pa.Table.from_pylist([{**record, "n": 1} for record in records if shape != "inspect"]), tmp_path / "e.parquet"
    )
    for path in (lines(tmp_path / "e.jsonl", records), tmp_path / "list.json", tmp_path / "e.parquet"):
        if path.suffix == ".parquet" and (shape == "inspect" or len({type(r.get("correct")) for r in records}) > 1):
            continue
        exam = read_exam(path, "e")
        assert (exam.shape, exam.answers, exam.unreadable) == (shape, base, [])
        assert [(item.question, item.options, item.answer) for item in exam.items] == expected
    passages = [record.get("passage", "") for record in records]
    assert [item.before for item in exam.items] == passages


def test_csv_and_tsv_cells_are_read_as_their_writers_meant_them(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text('question,A,B,C,answer\nWhat?,x,y,,B\n"Which, then?",x,y,z,C\n')
    exam = read_exam(tmp_path / "e.csv", "e")
    assert [(item.options, item.answer) for item in exam.items] == [(("x", "y"), 1), (("x", "y", "z"), 2)]
    assert any("the number of options differs: 1 items have 2, 1 items have 3" in note for note in exam.notes)
    (tmp_path / "l.tsv").write_text(
        'index\tquestion\toptions\tanswer\n4\tWhat?\t[\'x\', "it\'s"]\tB\n5\tA?\t["x", "y"]\tA\n'
    )
    listed = read_exam(tmp_path / "l.tsv", "l")
    assert [(item.id, item.options, item.answer) for item in listed.items] == [
        ("4", ("x", "it's"), 1),
        ("5", ("x", "y"), 0),
    ]
    (tmp_path / "p.csv").write_text("goal,sol1,sol2,label\nG,a,b,1.0\nG,c,d,0.0\n")  # pandas beside an empty cell
    assert [item.answer for item in read_exam(tmp_path / "p.csv", "p").items] == [1, 0]


def test_a_number_that_fits_both_counts_is_refused_with_both_readings(tmp_path: Path) -> None:
    path = lines(tmp_path / "e.jsonl", [{"question": "Q?", "options": ["left", "right"], "answer": 1}] * 3)
    with pytest.raises(DataError) as caught:
        read_exam(path, "e")
    said = str(caught.value)
    assert "counted from 0 the answer '1' is the option 'right'" in said
    assert "counted from 1 the answer '1' is the option 'left'" in said
    assert "--answers 0 or 1 for luthier exam" in said
    assert [read_exam(path, "e", answers=base).items[0].answer for base in "01"] == [1, 0]
    one_zero = lines(tmp_path / "z.jsonl", [{"question": f"{n}?", "options": [*"xy"], "answer": n} for n in (0, 1)])
    assert read_exam(one_zero, "z").answers == "0"


def test_values_that_contradict_a_shape_are_refused_with_both_readings(tmp_path: Path) -> None:
    path = lines(tmp_path / "p.jsonl", [{"goal": "G", "sol1": "a", "sol2": "b", "label": n} for n in (1, 2, 1)])
    with pytest.raises(
        DataError, match=r"piqa count their answers from 0(?s:.)*'2' is none(?s:.)*'2' is the option 'b'"
    ):
        read_exam(path, "p")
    assert [item.answer for item in read_exam(path, "p", answers="1").items] == [0, 1, 0]
    zero = [{"sentence": "_", "option1": "a", "option2": "b", "answer": n} for n in "010"]
    with pytest.raises(DataError, match="winogrande count their answers from 1"):
        read_exam(lines(tmp_path / "w.jsonl", zero), "w")
    # All ones are what the shape says they are.
    ones = lines(tmp_path / "o.jsonl", [{"goal": "G", "sol1": "a", "sol2": "b", "label": 1}])
    assert read_exam(ones, "o").items[0].answer == 1


def test_a_letter_that_is_also_an_options_text_is_told_apart_or_refused(tmp_path: Path) -> None:
    grade = {"question": "Which grade?", "options": ["B", "A"], "answer": "A"}
    other = {"question": "Which colour?", "options": ["red", "blue"], "answer": "B"}
    exam = read_exam(lines(tmp_path / "e.jsonl", [grade, other]), "e")
    assert (exam.answers, [item.answer for item in exam.items]) == ("letter", [0, 1])
    spelled = {"question": "Which colour?", "options": ["red", "blue"], "answer": "blue"}
    exam = read_exam(lines(tmp_path / "t.jsonl", [grade, spelled]), "t")
    assert (exam.answers, [item.answer for item in exam.items]) == ("text", [1, 1])
    with pytest.raises(DataError, match=r"read as a letter the answer 'A' is the option 'B'(?s:.)*text the answer 'A'"):
        read_exam(lines(tmp_path / "both.jsonl", [grade]), "both")
    # Numbers as options: only a difference matters.
    same = [{"question": "How many?", "options": ["1", "2"], "answer": n} for n in (1, 2)]
    assert [item.answer for item in read_exam(lines(tmp_path / "n.jsonl", same), "n").items] == [0, 1]
    turned = [{"question": "How many?", "options": ["2", "1"], "answer": n} for n in (1, 2)]
    with pytest.raises(DataError, match="can be read in two ways"):
        read_exam(lines(tmp_path / "m.jsonl", turned), "m")


BAD: list[tuple[Record, str]] = [
    ({"question": "Q?", "options": ["x", "y"], "answer": "C"}, "answer_outside"),
    ({"question": "Q?", "options": ["x", " x "], "answer": "A"}, "equal_options"),
    ({"question": "Q?", "options": ["x", ""], "answer": "A"}, "empty_option"),
    ({"question": "Q?", "options": ["x", None, "y"], "answer": "A"}, "empty_option"),
    ({"question": "Q?", "options": ["x"], "answer": "A"}, "few_options"),
    ({"question": "Q?", "options": ["x", "y"], "answer": None}, "no_answer"),
    ({"question": "Q?", "options": ["x", "y"], "answer": -1}, "no_answer"),
    ({"question": " ", "options": ["x", "y"], "answer": "A"}, "no_text"),
    ({"questoin": "Q?", "options": ["x", "y"], "answer": "A"}, "no_question"),
    ({"goal": "Q?", "sol1": "x", "sol2": "y", "label": 0}, "other_shape"),
    ({"question": "a\0b", "options": ["x", "y"], "answer": "A"}, "nul_character"),
    ({"question": "Q?", "options": ["x", "y"], "answer": "A", "image": "gone.png"}, "missing_media"),
    ({"question": "Q?", "options": ["x", "y"], "answer": "A", "image": "../up.png"}, "path_outside_folder"),
    ({"question": "Q?", "options": ["x", "y"], "answer": "A", "image": "https://a.b/c.png"}, "remote_media"),
    ({"question": "Q?", "options": ["x", "y"], "answer": "A", "video": "v.mp4"}, "missing_media"),
]


@pytest.mark.parametrize(("record", "reason"), BAD)
def test_a_bad_item_is_left_out_with_its_reason_and_many_are_refused(
    tmp_path: Path, record: Record, reason: str
) -> None:
    path = lines(tmp_path / "e.jsonl", [*(good(n) for n in range(19)), record])
    exam = read_exam(path, "e")
    assert len(exam.items) == 19
    assert [drop.reason for drop in exam.unreadable] == [reason]
    assert exam.unreadable[0].origin.startswith("e.jsonl#20")
    assert exam.notes[0].startswith(f"1 of 20 items are left out (1 {reason}); the first is e.jsonl#20")
    assert exam_record(exam, {}).unreadable == {reason: 1}
    with pytest.raises(DataError, match=rf"1 of 19 items cannot be used \(1 {reason}\)(?s:.)*The first: f.jsonl#19"):
        read_exam(lines(tmp_path / "f.jsonl", [*(good(n) for n in range(18)), record]), "f")


def test_lines_that_are_not_utf8_are_left_out_and_utf16_is_read(tmp_path: Path) -> None:
    path = lines(tmp_path / "e.jsonl", [good(n) for n in range(30)])
    path.write_bytes(path.read_bytes() + b'{"question": "caf\xe9?", "options": ["x", "y"], "answer": "A"}\n')
    assert [drop.reason for drop in read_exam(path, "e").unreadable] == ["not_utf8"]
    text = "question,A,B,answer\n" + "".join(f"Café {n}?,ä,ö,{'AB'[n % 2]}\n" for n in range(4))
    (tmp_path / "w.csv").write_bytes(text.encode("utf-16"))
    assert read_exam(tmp_path / "w.csv", "w").items[0].options == ("ä", "ö")
    (tmp_path / "latin.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match="4 of 4 items cannot be used \\(4 not_utf8\\)"):
        read_exam(tmp_path / "latin.csv", "latin")
    (tmp_path / "latin.json").write_bytes('[{"question": "é"}]'.encode("latin-1"))
    with pytest.raises(SourceError, match="not UTF-8"):
        read_exam(tmp_path / "latin.json", "latin")


def test_labels_of_a_second_file_find_their_items_by_order_or_by_id(tmp_path: Path) -> None:
    asked = [{"id": f"q{n}", "goal": f"G{n}", "sol1": "a", "sol2": "b"} for n in range(4)]
    path = lines(tmp_path / "valid.jsonl", asked)
    (tmp_path / "valid-labels.lst").write_text("1\n0\n0\n1\n")
    assert [item.answer for item in read_exam(path, "v", tmp_path / "valid-labels.lst").items] == [1, 0, 0, 1]
    (tmp_path / "by-id.csv").write_text("id,label\nq3,1\nq2,0\nq1,0\nq0,1\n")
    assert [item.answer for item in read_exam(path, "v", tmp_path / "by-id.csv").items] == [1, 0, 0, 1]
    (tmp_path / "short.lst").write_text("1\n0\n0\n")
    with pytest.raises(DataError, match="3 labels for an exam of 4 records"):
        read_exam(path, "v", tmp_path / "short.lst")
    (tmp_path / "twice.csv").write_text("id,label\nq3,1\nq3,0\nq1,0\nq0,1\n")
    with pytest.raises(DataError, match="the id q3 has two labels"):
        read_exam(path, "v", tmp_path / "twice.csv")
    with pytest.raises(DataError, match=r"4 of 4 items cannot be used \(4 no_answer\)(?s:.)*labels: FILE"):
        read_exam(path, "v")
    with pytest.raises(SourceError, match=r"gone\.lst: cannot be read"):
        read_exam(path, "v", tmp_path / "gone.lst")
    own = lines(tmp_path / "own.jsonl", [{**record, "label": 0} for record in asked])
    with pytest.raises(DataError, match="has an answer of its own"):
        read_exam(own, "v", tmp_path / "valid-labels.lst")
    # A line that cannot be read keeps its label: the others do not move.
    many = [*({"goal": f"G{n}", "sol1": "a", "sol2": "b"} for n in range(40))]
    torn = lines(tmp_path / "torn.jsonl", many)
    torn.write_text(torn.read_text().replace(json.dumps(many[0]), "{"))
    (tmp_path / "many.lst").write_text("\n".join(str(n % 2) for n in range(40)))
    assert [item.answer for item in read_exam(torn, "t", tmp_path / "many.lst").items] == [n % 2 for n in range(1, 40)]


def test_a_sources_columns_name_what_a_file_calls_otherwise(tmp_path: Path) -> None:
    records = [{"text": f"Q{n}?", "options": ["x", "y"], "gold": "AB"[n], "page": f"p{n}", "key": n} for n in (0, 1)]
    columns = {"prompt": "text", "label": "gold", "group": "page", "id": "key"}
    source = Source(name="s", path=str(lines(tmp_path / "e.jsonl", records)), columns=columns)
    exam = read_exam(source, "s")
    assert [(item.id, item.question, item.group, item.answer) for item in exam.items] == [
        ("0", "Q0?", "p0", 0),
        ("1", "Q1?", "p1", 1),
    ]
    assert [item.id for item in exam_items(source).items] == ["0", "1"]


def test_ids_are_of_the_content_where_a_file_has_none_and_those_that_come_twice_differ(tmp_path: Path) -> None:
    records = [{key: value for key, value in good(n).items() if key != "id"} for n in range(6)]
    exam = read_exam(lines(tmp_path / "e.jsonl", records), "e")
    turned = read_exam(lines(tmp_path / "f.jsonl", records[::-1]), "f")
    assert [item.id for item in turned.items] == [item.id for item in exam.items][::-1]
    assert all(len(item.id) == 16 and set(item.id) <= set(string.hexdigits) for item in exam.items)
    assert exam.digest != turned.digest
    assert [item.id for item in exam_items(tmp_path / "e.jsonl").items] == [item.id for item in exam.items]
    twice = read_exam(lines(tmp_path / "d.jsonl", [{**good(0), "id": 7}, {**good(1), "id": 7}]), "d")
    assert [item.id for item in twice.items] == ["7 (d.jsonl#1 7)", "7 (d.jsonl#2 7)"]


def test_an_exam_is_the_same_in_every_format_and_after_a_round_trip(tmp_path: Path) -> None:
    records = [{**good(n), "passage": f"A passage, {n}.", "group": f"g{n // 2}"} for n in range(8)]
    exam = read_exam(lines(tmp_path / "e.jsonl", records), "e")
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "e.parquet")
    (tmp_path / "e.json").write_text(json.dumps({"data": records}, indent=2))
    write_items(exam, tmp_path / "items.jsonl")
    digests = {read_exam(tmp_path / name, "x").digest for name in ("e.parquet", "e.json", "items.jsonl")}
    assert digests == {exam.digest} == {exam_digest(exam.items)}
    assert read_jsonl(tmp_path / "items.jsonl")[1] == {
        "id": "g1",
        "question": "Question 1?",
        "before": "A passage, 1.",
        "options": ["x", "y"],
        "answer": 1,
        "group": "g0",
    }
    records[3]["answer"] = "A"
    assert read_exam(lines(tmp_path / "g.jsonl", records), "g").digest != exam.digest


def test_a_missing_or_empty_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is not there"):
        read_exam(tmp_path / "gone.json", "e")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="there are no items in it"):
        read_exam(tmp_path / "empty.jsonl", "e")
    with pytest.raises(DataError, match="answers are counted 'B'"):
        read_exam(tmp_path / "empty.jsonl", "e", answers="B")


def test_options_of_any_number_of_columns_are_read(tmp_path: Path) -> None:
    columns = {f"option{n}": f"choice {n}" for n in range(1, 31)}
    rows = [{"question": f"Which, {n}?", **columns, "answer": f"choice {30 - n}"} for n in range(5)]
    read = read_exam(lines(tmp_path / "e.jsonl", rows), "e")
    assert [len(item.options) for item in read.items] == [30] * 5
    assert [item.answer for item in read.items] == [29, 28, 27, 26, 25]
