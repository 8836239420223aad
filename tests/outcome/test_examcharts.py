"""Charts of exams: marks stand where the numbers say, and names stay on the chart, whatever they are."""

from __future__ import annotations

import base64
import io
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from luthier.outcome.charts import WIDTH
from luthier.outcome.exams import charts as examcharts
from luthier.outcome.exams import curves as examcurves
from luthier.outcome.exams import itemmap as exammap
from luthier.outcome.exams.charts import Estimate, Mark
from luthier.outcome.exams.curves import Curve

ROWS = [
    Estimate("base", 0.53, 0.45, 0.61, "53.0%", "s0"),
    Estimate("step 50", 0.7, 0.62, 0.77, "70.0%", ring=True),
    Estimate("step 100", 0.71, 0.63, 0.78, "71.0%"),
]
CURVE = Curve([(50, 0.6), (100, 0.7), (150, 0.72)], [(0.5, 0.7), (0.6, 0.8), (0.62, 0.82)], 0.53, 100, "chosen", 150)


def tree(svg: str) -> ET.Element:
    return ET.fromstring(svg)


def marks(svg: str, tag: str, css: str) -> list[ET.Element]:
    return [one for one in tree(svg).iter(tag) if one.get("class") == css]


def at(one: ET.Element, key: str) -> float:
    return float(one.attrib[key])


def test_points_stand_in_the_order_of_their_shares_inside_their_intervals() -> None:
    svg = examcharts.estimate_chart("scores", ROWS, [Mark(0.5, "guessing 50.0%")], "right, %")
    points = marks(svg, "circle", "s0") + marks(svg, "circle", "s1")
    assert [at(one, "cx") for one in points] == sorted(at(one, "cx") for one in points)
    ends = [list(map(float, re.findall(r"[\d.]+", one.attrib["d"]))) for one in tree(svg).iter("path")]
    whiskers = [numbers for numbers in ends if len(numbers) == 3 and numbers[1] in {at(one, "cy") for one in points}]
    assert len(whiskers) == len(points)
    for (left, y, right), point in zip(whiskers, points, strict=True):
        assert y == at(point, "cy")
        assert left < at(point, "cx") < right
    ring = marks(svg, "circle", "ring")
    assert [at(one, "cx") for one in ring] == [at(points[1], "cx")]
    guess = marks(svg, "path", "ideal")[0].attrib["d"]
    assert float(re.findall(r"[\d.]+", guess)[0]) < at(points[0], "cx")


def test_equal_gaps_are_equally_wide() -> None:
    svg = examcharts.estimate_chart(
        "scores", [Estimate(str(share), share, share, share) for share in (0.2, 0.3, 0.4)], [], "right, %"
    )
    first, second, third = (at(one, "cx") for one in marks(svg, "circle", "s1"))
    assert third - second == pytest.approx(second - first, abs=0.2)


@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=80),
        min_size=1,
        max_size=6,
    )
)
def test_names_of_any_kind_are_escaped_and_stay_on_the_chart(names: list[str]) -> None:
    rows = [Estimate(name, 0.7, 0.6, 0.8, "-21.6 p < 0.001") for name in names]
    shares = [(name, 0.7, ["a", "b"]) for name in names]
    for svg in (
        examcharts.estimate_chart("scores", rows, [Mark(0.5, "guessing")], "right, %"),
        examcharts.groups_chart("groups", shares),
        examcharts.place_chart("places", [(name, 0.5, 0.4) for name in names], 0.5),
        examcurves.cost_chart("cost", [(row, float(place)) for place, row in enumerate(rows)], "seconds"),
        exammap.item_map("map", names, np.ones((len(names), 5), dtype=bool)),
    ):
        for one in tree(svg).iter("text"):
            x, wide = at(one, "x"), 6.0 * len(one.text or "")
            left = {"start": x, "middle": x - wide / 2, "end": x - wide}[one.attrib["text-anchor"]]
            assert left > -4
            assert left + wide < WIDTH + 4


@pytest.mark.parametrize("share", [0.41, 0.5, 0.55, 0.6, 0.65, 0.79])
def test_words_beside_a_line_fit_wherever_it_stands(share: float) -> None:
    marks_there = [Mark(share, "always one place 53.3%")]
    forest = examcharts.estimate_chart("scores", [Estimate("base", 0.6, 0.4, 0.8, "60.0%")], marks_there, "right, %")
    step = round(1000 * share)
    curve = examcurves.curve_chart("curve", Curve([(step, 0.6), (800, 0.6)], [], None, step, "chosen", step))
    for svg, words in ((forest, "always one place 53.3%"), (curve, f"chosen, best: step {step}")):
        one = next(one for one in tree(svg).iter("text") if one.text == words)
        left = at(one, "x") - (6.9 * len(words) if one.attrib["text-anchor"] == "end" else 0)
        assert left >= 0
        assert left + 6.9 * len(words) <= WIDTH


@pytest.mark.parametrize("name", ["toy-gemma2", "mmmmWWWWmmmm"])
def test_wide_letters_stay_on_the_chart(name: str) -> None:
    svg = examcharts.estimate_chart("scores", [Estimate(name, 0.5, 0.4, 0.6)], [], "right, %")
    [label] = [one for one in tree(svg).iter("text") if one.text == name]
    wide = {"m": 11.7, "W": 11.9, "o": 7.3, "e": 7.4, "t": 4.7, "y": 7.1, "g": 7.6, "a": 7.4, "2": 7.6, "-": 4.3}
    assert at(label, "x") >= sum(wide[letter] for letter in name)  # DejaVu Sans at 12 units, set to end at x


def test_names_and_notes_of_long_rows_do_not_meet() -> None:
    svg = examcharts.estimate_chart("gaps", [Estimate("n" * 60, -0.2, -0.3, -0.1, "-20.0 p < 0.001")], [], "points")
    name, note = (one for one in tree(svg).iter("text") if "n" * 5 in (one.text or "") or "p <" in (one.text or ""))
    assert at(name, "y") == at(note, "y")
    assert at(name, "x") + 6.6 * len(name.text or "") < at(note, "x") - 6.6 * len(note.text or "")


def test_the_curve_holds_its_band_its_base_and_its_picks() -> None:
    svg = examcurves.curve_chart("curve", CURVE)
    points = marks(svg, "circle", "s1")
    polygon = [tuple(map(float, pair.split(","))) for pair in marks(svg, "polygon", "band")[0].attrib["points"].split()]
    highs, lows = polygon[:3], polygon[:2:-1]
    for point, high, low in zip(points, highs, lows, strict=True):
        assert high[0] == low[0] == at(point, "cx")
        assert high[1] < at(point, "cy") < low[1]
    assert [at(one, "cx") for one in marks(svg, "circle", "ring")] == [at(points[1], "cx"), at(points[2], "cx")]
    assert "chosen: step 100" in svg
    assert "best: step 150" in svg
    base = float(re.findall(r"[\d.]+", marks(svg, "path", "line dashed s0")[0].attrib["d"])[1])
    assert base > max(at(one, "cy") for one in points)


def test_one_that_is_chosen_and_best_is_named_once() -> None:
    svg = examcurves.curve_chart("curve", Curve([(50, 0.6), (100, 0.7)], [], None, 100, "kept", 100))
    assert svg.count("kept, best: step 100") == 1
    assert svg.count('class="ring"') == 1
    assert 'class="band"' not in svg


def test_the_correction_stands_beside_the_best_and_below_it() -> None:
    curve = Curve(CURVE.points, CURVE.band, 0.53, 100, "chosen", 150, (0.7, 0.6, 0.75))
    corrected = marks(examcurves.curve_chart("curve", curve), "circle", "s2")
    best = marks(examcurves.curve_chart("curve", curve), "circle", "s1")[2]
    assert len(corrected) == 1
    assert abs(at(corrected[0], "cx") - at(best, "cx")) < 10
    assert at(corrected[0], "cy") > at(best, "cy")


def test_who_shares_a_letter_shares_a_column() -> None:
    groups = [("d", 0.5, ["c"]), ("a", 0.9, ["a"]), ("b", 0.8, ["a", "b"]), ("c", 0.7, ["b", "c"])]
    svg = examcharts.groups_chart("groups", groups)
    height = {
        one.text: at(one, "y") - 4
        for one in tree(svg).iter("text")
        if one.text in ("a", "b", "c", "d") and one.get("text-anchor") == "start"
    }
    columns: dict[float, set[float]] = {}
    for dot in marks(svg, "circle", "s1"):
        columns.setdefault(at(dot, "cx"), set()).add(at(dot, "cy"))
    for one in groups:
        for other in groups:
            if one is not other:
                shared = any({height[one[0]], height[other[0]]} <= rows for rows in columns.values())
                assert shared == bool(set(one[2]) & set(other[2])), (one, other)
    assert height["a"] < height["b"] < height["c"] < height["d"]


def test_bars_are_as_long_as_their_shares() -> None:
    svg = examcharts.place_chart("places", [("base", 0.8, 0.2)], 0.5)
    first = next(at(one, "width") for one in marks(svg, "rect", "s1") if at(one, "height") == 6)
    both = next(at(one, "width") for one in marks(svg, "rect", "s2") if at(one, "height") == 6)
    assert first == pytest.approx(4 * both, rel=0.01)


def test_no_name_covers_another_on_the_cost_chart() -> None:
    rng = np.random.default_rng(5)
    rows = [
        (Estimate(f"step {50 * n}", share, share, share), float(n))
        for n, share in enumerate(rng.uniform(0.7, 0.72, 22))
    ]
    svg = examcurves.cost_chart("cost", rows, "minutes of training")
    names = [one for one in tree(svg).iter("text") if (one.text or "").startswith("step ")]
    boxes = [(at(one, "x"), at(one, "y"), at(one, "x") + 6.0 * len(one.text or "")) for one in names]
    assert names
    for place, (left, y, right) in enumerate(boxes):
        for other in boxes[place + 1 :]:
            assert abs(y - other[1]) > 10 or right < other[0] or other[2] < left


def test_the_map_is_the_brute_force_one() -> None:
    rng = np.random.default_rng(3)
    correct = rng.random((7, 1000)) < 0.7
    shares = exammap.wrong_shares(correct, most=50)
    hardness = (~correct).sum(axis=0)
    assert shares.shape == (7, 50)
    np.testing.assert_allclose(shares.mean(axis=1), (~correct).mean(axis=1))
    np.testing.assert_allclose(shares.sum(axis=0), np.sort(hardness).reshape(50, 20).mean(axis=1))
    few = exammap.wrong_shares(correct[:, :9])
    assert sorted(map(tuple, few.T)) == sorted(map(tuple, (~correct[:, :9]).astype(float).T))


def test_the_picture_of_the_map_has_a_strip_a_candidate() -> None:
    correct = np.array([[True] * 8, [False] * 8, [True] * 4 + [False] * 4])
    svg = exammap.item_map("map", ["all", "none", "half"], correct)
    data = re.search(r"base64,([^\"]+)", svg)
    assert data is not None
    grey = np.asarray(Image.open(io.BytesIO(base64.b64decode(data[1]))))
    strips = [grey[20 * row + 1 : 20 * row + 19] for row in range(3)]
    assert not strips[0].any()
    assert (strips[1] == 255).all()
    assert not strips[2][:, :160].any()
    assert (strips[2][:, 160:] == 255).all()
    assert not grey[[19, 39, 59]].any(), "strips do not touch"


def test_a_large_map_stays_small() -> None:
    correct = np.random.default_rng(0).random((22, 3137)) < 0.75
    assert len(exammap.item_map("map", [f"step {n}" for n in range(22)], correct)) < 60_000


def test_the_power_chart_marks_this_exam_on_the_curve() -> None:
    gaps = [(100.0, 0.09), (1000.0, 0.03), (10_000.0, 0.009)]
    svg = examcurves.power_chart("power", gaps, (1000, 0.03), 0.006)
    middle = marks(svg, "polyline", "line s1")[0].attrib["points"].split()[1]
    dot = marks(svg, "circle", "s2")[0]
    assert f"{dot.attrib['cx']},{dot.attrib['cy']}" == middle
    assert "questions: 3.0 points" in svg
    assert "below 0.6: never significant" in svg


def test_nothing_gives_no_chart() -> None:
    assert examcharts.estimate_chart("t", [], [], "x") == examcharts.groups_chart("t", []) == ""
    assert examcharts.place_chart("t", [], 0.5) == examcurves.curve_chart("t", Curve([], [])) == ""
    assert examcurves.cost_chart("t", [], "x") == examcurves.power_chart("t", [], (1, 0.1), 0.1) == ""
    assert exammap.item_map("t", [], np.zeros((0, 0), dtype=bool)) == ""
