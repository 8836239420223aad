"""The charts: well-formed SVG that says its numbers, and honest arithmetic behind it."""

import math
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.outcome import charts, figures

finite = st.floats(-1e6, 1e6, allow_nan=False)


def parse(svg: str) -> ElementTree.Element:
    """An inline SVG needs no namespace in HTML; it must be well-formed XML all the same."""
    return ElementTree.fromstring(svg)


def every_chart() -> list[str]:
    """One chart of each kind, with a title that must be escaped."""
    rng = np.random.default_rng(0)
    probabilities = rng.uniform(size=100).tolist()
    outcomes = (rng.uniform(size=100) < probabilities).tolist()
    bins = figures.equal_mass_bins(probabilities, outcomes)
    grades = {3.5: probabilities[:50], 4.0: probabilities[50:]}
    title = 'a <b> & "c"'
    return [
        charts.loss_chart(title, [(i, 1 / (i + 1)) for i in range(50)], [(49, 0.4)]),
        charts.reliability_chart(title, [("raw", bins), ("calibrated", bins)]),
        charts.grade_chart(title, grades),
        charts.borderline_chart(title, grades),
    ]


@pytest.mark.parametrize("svg", every_chart())
def test_every_chart_scales_and_names_itself(svg: str) -> None:
    root = parse(svg)
    title, desc = root.find("title"), root.find("desc")
    assert root.get("viewBox")
    assert root.get("role") == "img"
    assert root.get("width") is None
    assert title is not None
    assert title.text == 'a <b> & "c"'
    assert desc is not None
    assert desc.text
    assert any(letter.isdigit() for letter in desc.text)
    assert root.get("aria-labelledby") == f"{title.get('id')} {desc.get('id')}"


@pytest.mark.parametrize("svg", every_chart())
def test_marks_stay_inside_the_drawing(svg: str) -> None:
    root = parse(svg)
    height = float(root.get("viewBox", "").split()[3])
    marks = list(root.iter("circle"))
    for mark in marks:
        assert charts.LEFT <= float(mark.get("cx", "nan")) <= charts.WIDTH
        assert 0 <= float(mark.get("cy", "nan")) <= height - charts.BOTTOM + 0.1
    assert marks or len(list(root.iter("rect"))) > 2


def test_nothing_to_draw_gives_nothing() -> None:
    assert charts.loss_chart("t", [], []) == ""
    assert charts.loss_chart("t", [(1, math.nan)], []) == ""
    assert charts.reliability_chart("t", [("raw", [])]) == ""
    assert charts.grade_chart("t", {3.0: []}) == ""
    assert charts.borderline_chart("t", {}) == ""


def test_bins_hold_equal_counts_and_lose_no_item() -> None:
    probabilities = np.random.default_rng(1).uniform(size=103).tolist()
    bins = figures.equal_mass_bins(probabilities, [value > 0.5 for value in probabilities])
    assert sum(item.count for item in bins) == 103
    assert {item.count for item in bins} == {10, 11}
    assert [item.predicted for item in bins] == sorted(item.predicted for item in bins)
    assert bins[0].observed == 0
    assert bins[-1].observed == 1
    assert sum(item.count * item.predicted for item in bins) == pytest.approx(sum(probabilities))


def test_few_items_share_one_bin_and_unequal_lengths_are_refused() -> None:
    assert [item.count for item in figures.equal_mass_bins([0.1, 0.9, 0.4], [False, True, True])] == [3]
    with pytest.raises(ValueError, match="2 probabilities and 1 outcomes"):
        figures.equal_mass_bins([0.1, 0.2], [True])


@settings(max_examples=80, deadline=None)
@given(finite, finite)
def test_ticks_are_few_even_and_cover_the_range(one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    ticks = charts.nice_ticks(low, high)
    slack = 1e-6 * max(1, abs(low), abs(high))
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack
    assert 2 <= len(ticks) <= 8
    assert np.allclose(np.diff(ticks), ticks[1] - ticks[0], rtol=1e-6, atol=slack)


def test_thinning_keeps_the_mean_and_the_limit() -> None:
    points = [(float(i), float(i % 7)) for i in range(charts.MAX_POINTS * 10)]
    thinned = charts.thin(points)
    assert len(thinned) == charts.MAX_POINTS
    assert np.mean([value for _, value in thinned]) == pytest.approx(np.mean([value for _, value in points]))
    assert charts.thin(points[:5]) == points[:5]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**7), st.floats()), max_size=30))
def test_wild_losses_draw_finite_coordinates_or_nothing(points: list[tuple[int, float]]) -> None:
    svg = charts.loss_chart("loss", points, [])
    if any(not math.isnan(value) for _, value in points):
        path = next(iter(parse(svg).iter("polyline"))).get("points", "")
        assert all(math.isfinite(float(number)) for number in path.replace(",", " ").split())
    else:
        assert svg == ""


def test_borderline_splits_at_one_half() -> None:
    root = parse(charts.borderline_chart("near", {3.5: [0.1, 0.49, 0.5, 0.9]}))
    assert "50% of 4 at or above one half" in (root.findtext("desc") or "")
    bars = [rect.get("class") for rect in root.iter("rect")]
    assert bars == ["s1", "s1", "s2", "s2"]
