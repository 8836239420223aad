"""Predictions from elsewhere: every shape of file, the published texts by hand, and what cannot be read."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.assess.outside import _answer, read_predictions, score_outside
from luthier.errors import RequestError
from luthier.recipe import Scale

SCALE = Scale(minimum=1.0, maximum=5.0, step=0.5, pass_mark=4.0)
PAIRS = [
    ("0,0.70", "1,0.65"),
    ("1,0.65", "1,0.65"),
    ("0,0.50", "0,0.50"),
    ("1,0.75", "0,0.70"),
    ("0,0.80", "0,0.70"),
    ("1,0.95", "1,0.75"),
]
ROWS = [{"prediction": prediction, "label": label} for prediction, label in PAIRS]


def write(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def written(folder, kind, rows):
    if kind == "list":
        return write(folder, "p.json", json.dumps(rows))
    if kind == "object":
        return write(folder, "p.json", json.dumps({"model": "x", "errors": [], "results": rows}))
    if kind == "lines":
        return write(folder, "p.jsonl", "\n".join(json.dumps(row) for row in rows) + "\n\n")
    path = folder / f"p.{kind}"
    with path.open("w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t" if kind == "tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize("kind", ["list", "object", "lines", "csv", "tsv"])
def test_six_published_pairs_by_hand(tmp_path, kind):
    outside = read_predictions(written(tmp_path, kind, ROWS))
    found = score_outside(outside, SCALE, resamples=50)
    assert [item.p_pass for item in outside.items] == pytest.approx([0.30, 0.65, 0.50, 0.75, 0.20, 0.95])
    # on P(pass): "0,0.70" for "1,0.65" costs (0.30 - 0.65)² = 0.1225, not the 0.0025 of bare confidences
    assert found["probability_mse"]["value"] == pytest.approx((0.1225 + 0 + 0 + 0.2025 + 0.01 + 0.04) / 6)
    assert found["accuracy"]["value"] == pytest.approx(4 / 6)
    assert found["auroc"]["value"] == pytest.approx(6 / 9)
    assert found["brier"]["value"] == pytest.approx((0.49 + 0.1225 + 0.25 + 0.5625 + 0.04 + 0.0025) / 6)
    assert found["borderline.accuracy"]["value"] == pytest.approx(2 / 3)
    assert found["borderline.accuracy"]["n"] == 3
    assert found["borderline.auroc"]["value"] == pytest.approx(1 / 2)
    assert found["labels"]["0,0.70"] == {"mean_p": pytest.approx(0.475), "n": 2}
    assert list(found["labels"]) == ["0,0.70", "0,0.50", "1,0.65", "1,0.75"]
    assert found["unreadable"] == 0
    assert found["event"] == "panel"
    assert "grades" not in found
    json.dumps(found, allow_nan=False)


def test_as_a_raters_probability_the_borderline_label_is_one_half(tmp_path):
    outside = read_predictions(written(tmp_path, "list", ROWS))
    found = score_outside(outside, SCALE, event="rater", resamples=20)
    assert found["brier"]["value"] == pytest.approx((0.49 + 0.1225 + 0 + 0.5625 + 0.04 + 0.0025) / 6)


@pytest.mark.parametrize("wrong", ["I cannot hear it", "", None, "2,0.70", "1,7", "1", "0,0.7 or 1,0.6", 0.7])
@pytest.mark.parametrize("label", ["0,0.70", "1,0.75"])
def test_an_unreadable_prediction_is_wrong_and_named(tmp_path, wrong, label):
    rows = [*ROWS, {"prediction": wrong, "label": label}]
    outside = read_predictions(written(tmp_path, "list", rows))
    found = score_outside(outside, SCALE, resamples=20)
    assert found["accuracy"] == {**found["accuracy"], "value": pytest.approx(4 / 7), "n": 7}
    assert found["unreadable"] == 1
    assert "1 of 7" in found["note"]
    assert "item 7" in outside.unreadable[0]
    assert repr(wrong) in outside.unreadable[0]
    assert outside.items[-1].p_pass == 0.5


def test_special_tokens_around_an_answer_are_no_obstacle(tmp_path):
    rows = [{"prediction": "1, 0.65<|end|><|endoftext|>", "label": "0,0.50"}]
    item = read_predictions(written(tmp_path, "list", rows)).items[0]
    assert item.readable
    assert item.p_pass == pytest.approx(0.65)


def test_our_own_fields_with_grades_and_held_back_raters(tmp_path):
    rows = [
        {"id": "a", "group": "s1", "p_pass": 0.2, "grade": 3.0, "held_back": []},
        {"id": "b", "group": "s1", "p_pass": 0.6, "grade": 3.5, "held_back": [4, 4, 3]},
        {"id": "c", "group": "s2", "p_pass": 0.9, "grade": 4.0, "held_back": [4]},
    ]
    outside = read_predictions(written(tmp_path, "lines", rows))
    found = score_outside(outside, SCALE, event="rater", resamples=20)
    assert [item.group for item in outside.items] == ["s1", "s1", "s2"]
    assert found["closer"]["value"] == 1.0
    assert found["closer"]["n"] == 1
    assert found["accuracy"]["value"] == pytest.approx(2 / 3)
    assert found["grades"]["3.5"]["n"] == 1
    assert "probability_mse" not in found
    assert found["note"] == ""
    in_csv = [{**row, "held_back": ";".join(map(str, row["held_back"]))} for row in rows]
    assert read_predictions(written(tmp_path, "csv", in_csv)).items == outside.items


@pytest.mark.parametrize("name", ["grade", "score", "label"])
def test_a_grade_by_any_of_its_names(tmp_path, name):
    rows = [{"p_pass": 0.2, name: 3}, {"p_pass": 0.7, name: "4.5"}]
    assert [item.grade for item in read_predictions(written(tmp_path, "list", rows)).items] == [3.0, 4.5]


def test_labels_of_nought_and_one_are_answers_not_grades(tmp_path):
    rows = [{"p_pass": 0.2, "label": 0}, {"p_pass": 0.7, "label": 1}, {"p_pass": 0.6, "label": 0}]
    outside = read_predictions(written(tmp_path, "list", rows))
    found = score_outside(outside, SCALE, resamples=50)
    assert [item.grade for item in outside.items] == [None, None, None]
    assert found["accuracy"]["value"] == pytest.approx(2 / 3)
    assert found["auroc"]["value"] == 1.0
    assert "borderline.accuracy" not in found
    assert "probability_mse" not in found


def test_a_label_of_one_among_grades_is_a_grade(tmp_path):
    rows = [{"p_pass": 0.2, "label": 1}, {"p_pass": 0.7, "label": 3.5}]
    assert [item.grade for item in read_predictions(written(tmp_path, "list", rows)).items] == [1.0, 3.5]


def test_labels_from_a_second_file_by_id_and_by_order(tmp_path):
    first = written(tmp_path, "list", [{"id": "b", "p_pass": 0.9}, {"id": "a", "p_pass": 0.2}])
    by_id = written(tmp_path, "csv", [{"id": name, "grade": grade} for name, grade in (("a", 3), ("b", 4.5), ("c", 1))])
    assert [item.grade for item in read_predictions(first, by_id).items] == [4.5, 3.0]
    in_order = written(tmp_path, "tsv", [{"grade": 4}, {"grade": 2}])
    assert [item.grade for item in read_predictions(first, in_order).items] == [4.0, 2.0]
    with pytest.raises(RequestError, match=r"2 rows.*3"):
        read_predictions(first, written(tmp_path, "tsv", [{"grade": 4}] * 3))
    with pytest.raises(RequestError, match="item 1: id 'b'"):
        read_predictions(first, written(tmp_path, "csv", [{"id": "a", "grade": 3}]))


def test_an_answer_that_its_probability_does_not_favour_is_noted(tmp_path):
    rows = [*ROWS, {"prediction": "1,0.30", "label": "1,0.65"}]
    outside = read_predictions(written(tmp_path, "list", rows))
    assert outside.items[-1].p_pass == pytest.approx(0.30)
    assert outside.note.startswith("1 predictions name")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '[{"p_pass": 0.5,\n "grade": }]', "line 2"),
        ("a.jsonl", '{"p_pass": 0.5, "grade": 3}\n\n{"p_pass": 0.\n', "line 3"),
        ("a.jsonl", '{"p_pass": 0.5, "grade": 3}\n[1]\n', "line 2"),
        ("a.json", "[1, 2]", "item 1"),
        ("a.json", "[]", "no predictions"),
        ("a.json", '{"accuracy": 0.5}', "no predictions"),
        ("a.csv", "", "no predictions"),
        ("a.csv", 'p_pass,grade\n0.5,3\n0.5,"3\n', "line 3"),
        ("a.csv", "p_pass,grade\n0.5,3\n0.4,\n", "line 3"),
        ("a.csv", "p_pass,grade,held_back\n0.5,3,x;y\n", "line 2"),
        ("a.csv", "answer,grade\n1,3\n", "p_pass, prediction"),
        ("a.csv", "id,p_pass,grade\na,0.5,3\na,0.6,4\n", "line 2 and .* line 3"),
    ],
)
def test_a_bad_file_is_named_with_its_place(tmp_path, name, text, message):
    with pytest.raises(RequestError, match=message) as caught:
        read_predictions(write(tmp_path, name, text))
    assert name in str(caught.value)
    assert caught.value.mend


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(RequestError, match="absent"):
        read_predictions(tmp_path / "absent.json")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(RequestError, match=r"b\.csv"):
        read_predictions(tmp_path / "b.csv")


@settings(deadline=None)
@given(st.text(max_size=30) | st.from_regex(r"[01],[01]\.\d\d"))
def test_any_text_is_an_answer_with_its_probability_or_nothing(text):
    found = _answer(text)
    assert found is None or (found[0] in (0.0, 1.0) and 0.0 <= found[1] <= 1.0)


def test_the_event_of_our_own_predictions_is_theirs(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    rows = [{"id": str(i), "grade": 3.0 + i / 2, "p_pass": 0.2 + 0.2 * i, "event": "rater"} for i in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_predictions(path).event == "rater"
    rows[0]["event"] = "panel"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_predictions(path).event is None
