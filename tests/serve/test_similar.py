"""Similar answers, the scale they are shown beside, and the table for spreadsheets."""

import csv
import io
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.engines.base import ServedModel, Verdict, Zone
from luthier.errors import DataError
from luthier.files import write_jsonl, write_text
from luthier.recipe import Recipe
from luthier.recipe_data import Source
from luthier.recipefile import to_yaml
from luthier.serve.judgeparts import COLUMNS, csv_of, told_similar, told_verdict
from luthier.serve.scale import drawn_scale, told_scale
from luthier.serve.similar import nearest, questions_of

P = [0.05, 0.2, 0.48, 0.55, 0.9]


def speaking_run(folder: Path, questions: list[str]) -> ServedModel:
    """A run of one verdict stage whose held-out answers have these questions and the probabilities P."""
    recipe = Recipe()
    recipe.model.base = "toy:phi4-multimodal"
    recipe.data.sources = {name: Source(name=name, path=name) for name in ("train", "test", "other")}
    recipe.data.train, recipe.data.test = ["train"], ["test"]
    write_text(folder / "recipe.yaml", to_yaml(recipe))
    rows = [(f"a{n}", question, "test") for n, question in enumerate(questions)]
    rows += [("t0", questions[0], "train"), ("x0", "Of another stage?", "other")]
    table = [
        {
            "id": id,
            "source": source,
            "messages": json.dumps([{"role": "user", "content": [{"type": "text", "text": question}]}]),
            "target": json.dumps({"grade": 3.0, "raters": [2.0, 3.0], "held_back": [4.0]}),
        }
        for id, question, source in rows
    ]
    (folder / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(table), folder / "data/rows-00000.parquet")
    # What was calibrated counts: the raw figures would give another order.
    lines = [
        {"id": f"a{n}", "grade": 3.0 + n / 2, "pass": n > 2, "p_pass": 1 - p, "p_pass_calibrated": p}
        for n, p in enumerate(P)
    ]
    write_jsonl(folder / "stages/main/predictions.jsonl", lines)
    return ServedModel("run/main", "verdict", recipe.model.base, folder, "main")


@pytest.fixture
def model(tmp_path: Path) -> ServedModel:
    return speaking_run(tmp_path, ["Why?", "<b>How</b>?", "Why?", "When?", "Where?"])


def test_the_nearest_by_calibrated_probability_come_first_with_what_raters_gave(model: ServedModel) -> None:
    found = nearest(model, 0.5, 3)
    assert [one.id for one in found] == ["a2", "a3", "a1"]
    assert [(one.grade, one.passed, one.p_pass) for one in found] == [
        (4.0, False, 0.48),
        (4.5, True, 0.55),
        (3.5, False, 0.2),
    ]
    assert [one.question for one in found] == ["Why?", "When?", "<b>How</b>?"]
    assert found[0].raters == (2.0, 3.0, 4.0)
    shown = told_similar(found, True)
    assert "&lt;b&gt;How" in shown
    assert "3, from 2 to 4" in shown
    assert "Nobody compared what was said" in shown


def test_the_questions_of_a_stage_come_most_frequent_first_and_of_no_other(model: ServedModel) -> None:
    assert questions_of(model) == ["Why?", "<b>How</b>?", "When?", "Where?"]


def test_a_checkpoint_has_no_similar_answers_and_the_page_says_so(model: ServedModel) -> None:
    checkpoint = ServedModel("run/main@step-000005", "verdict", model.base, model.run, "main", 5)
    assert nearest(checkpoint, 0.5) == []
    assert "A checkpoint has no held-out answers" in told_similar([], False)
    assert len(questions_of(checkpoint)) == 4


def test_records_that_are_gone_or_broken_are_told(model: ServedModel, tmp_path: Path) -> None:
    nowhere = ServedModel("x/main", "verdict", "", tmp_path / "nowhere", "main")
    assert (nearest(nowhere, 0.5), questions_of(nowhere)) == ([], [])
    (tmp_path / "stages/main/predictions.jsonl").write_text("{broken\n{}\n")
    with pytest.raises(DataError, match="cannot be read"):
        nearest(model, 0.5)


probabilities = st.floats(0, 1)


@given(probabilities, st.none() | st.tuples(probabilities, probabilities))
def test_the_scale_is_whole_and_says_in_words_what_it_shows(p: float, ends: tuple[float, float] | None) -> None:
    zone = Zone(*sorted(ends), 7) if ends else None
    drawn = ElementTree.fromstring(drawn_scale(p, zone))
    assert drawn.attrib["aria-label"] == told_scale(p, zone)
    places = [
        float(value) for value in re.findall(r'(?:x|x1|x2|cx)="([-\d.]+)%"', ElementTree.tostring(drawn, "unicode"))
    ]
    assert all(0 <= place <= 100 for place in places)
    dot = next(one for one in drawn if one.tag == "circle")
    assert float(dot.attrib["cx"].rstrip("%")) == pytest.approx(100 * p, abs=0.006)
    if zone:
        shaded = next(one for one in drawn if one.tag == "rect")
        assert float(shaded.attrib["x"].rstrip("%")) == pytest.approx(100 * zone.low, abs=0.006)
        assert ("within" in told_scale(p, zone)) == (zone.low <= p <= zone.high)


def test_a_verdict_says_whose_probability_it_is_and_what_is_not_on_record() -> None:
    verdict = Verdict("a", True, 0.71, 0.66, "rater", None, 0.6, 3.9, False)
    told = told_verdict(verdict, Zone(0.4, 0.6, 12))
    assert "66.0% is the calibrated probability that a rater drawn at random would pass it" in told
    assert "0.400 to 0.600, the middle 80 % of 12 borderline held-out answers" in told
    assert "Panel passes it" not in told
    raw = told_verdict(Verdict("a", False, 0.31, None, "<i>"), None)
    assert "31.0% is the probability &lt;i&gt;" in raw
    assert "not on record" in raw


NAMES = ["=1+1", " =cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", 'a"b,c', "ça.wav", "\u00a0=1", "\n=1"]


def test_no_cell_of_the_saved_table_is_a_formula() -> None:
    found = [Verdict(name, False, 0.25, None) for name in NAMES] + [Verdict("x", error="=HYPERLINK()")]
    rows = list(csv.reader(io.StringIO(csv_of(found).decode("utf-8-sig"), newline="")))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == len(found) + 1
    cells = [cell for row in rows[1:] for cell in (row[0], row[-1])]
    assert not [cell for cell in cells if cell.strip()[:1] in tuple("=+-@")]
    assert rows[8][0] == 'a"b,c'
    assert rows[1][1:] == ["fail", "0.250000", "", "", ""]
