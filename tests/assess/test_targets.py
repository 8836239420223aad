"""Target methods: the users' table, the votes, monotonicity, inverses, and settings that are refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.assess.targets import METHODS, event_truth, make_target, parse_answer, target_table, votes
from luthier.errors import DataError, RecipeError, RequestError
from luthier.recipe import Scale, TargetSettings

SCALE = Scale(minimum=1.0, maximum=5.0, step=0.5, pass_mark=4.0)
FROM_GRADE = ["hard", "votes", "table", "linear", "logistic", "raters"]
GRADES = st.floats(1.0, 5.0)


def method(name, **settings):
    return make_target(TargetSettings(method=name, **settings), SCALE)


def squared_share(grade, raters, scale):
    return ((grade - scale.minimum) / (scale.maximum - scale.minimum)) ** 2


def too_sure(grade, raters, scale):
    return 1.5


def test_votes_on_the_users_scale():
    assert target_table(method("votes"), SCALE) == [
        (1.0, 0.0),
        (1.5, 0.0),
        (2.0, 0.0),
        (2.5, 0.0),
        (3.0, 0.0),
        (3.5, 0.5),
        (4.0, 1.0),
        (4.5, 1.0),
        (5.0, 1.0),
    ]


def test_the_example_table_at_its_knots_and_between():
    table = method("table")
    knots = {1: 0.01, 2: 0.20, 3: 0.30, 3.5: 0.50, 4: 0.75, 5: 0.92}
    for grade, p in knots.items():
        assert table(grade) == pytest.approx(p)
    assert table(2.5) == pytest.approx(0.25)
    assert table(4.5) == pytest.approx((0.75 + 0.92) / 2)


def test_a_table_in_texts_is_the_table_in_lists():
    texts = method("table", table={"2": "0, 0.80", "3.5": "0, 0.45..0.55", "4": "1,0.65 .. 0.85"})
    lists = method("table", table={2: [0, 0.8], 3.5: [0, 0.45, 0.55], 4: [1, 0.65, 0.85]})
    assert target_table(texts, SCALE) == target_table(lists, SCALE)
    assert texts(1.0) == pytest.approx(0.2)
    assert texts(5.0) == pytest.approx(0.75)


def test_a_falling_table_names_both_knots():
    # the probability is of the answer given, so a surer fail at 3 than at 2 falls
    with pytest.raises(RecipeError, match=r"falls from 0\.4 at 2 to 0\.1 at 3"):
        method("table", table={1: [0, 0.9], 2: [0, 0.6], 3: [0, 0.9], 4: [1, 0.8]})


def test_every_bad_line_of_a_table_is_named_at_once():
    with pytest.raises(RecipeError) as caught:
        method("table", table={"two": [0, 0.9], 3: [2, 0.5], 3.5: [0, 1.5], 4: 0.7, 5: [1, 0.9, 0.8]})
    assert len(caught.value.problems) == 5
    with pytest.raises(RecipeError, match="two grades"):
        method("table", table={4: [1, 0.7]})
    with pytest.raises(RecipeError, match="twice"):
        method("table", table={4: [1, 0.7], "4.0": [1, 0.8]})


@settings(deadline=None)
@given(st.sampled_from(FROM_GRADE), GRADES, GRADES)
def test_a_higher_grade_never_has_a_lower_target(name, one, other):
    chosen = method(name)
    low, high = chosen(min(one, other)), chosen(max(one, other))
    assert 0.0 <= low <= high + 1e-12
    assert high <= 1.0


@settings(deadline=None)
@given(st.sampled_from(["linear", "logistic", "table"]), GRADES)
def test_the_inverse_gives_the_grade_back(name, grade):
    chosen = method(name)
    assert chosen.inverse(chosen(grade)) == pytest.approx(grade, abs=1e-6)


@settings(deadline=None)
@given(st.floats(3.001, 3.999))
def test_the_inverse_of_votes_holds_between_the_flats(grade):
    chosen = method("votes")
    assert chosen.inverse(chosen(grade)) == pytest.approx(grade, abs=1e-6)
    assert chosen.inverse(0.0) is None
    assert chosen.inverse(1.0) is None


def test_no_inverse_where_grades_share_a_target():
    assert method("hard").inverse(1.0) is None
    flat = method("table", table={2: [0, 0.8], 3: [0, 0.7], 3.5: [0, 0.7], 4: [1, 0.8]})
    assert flat.inverse(0.3) is None  # 3 and 3.5 share it
    assert flat.inverse(0.2) is None  # everything up to 2 shares it
    assert flat.inverse(0.25) == pytest.approx(2.5)
    assert flat.inverse(0.9) is None
    assert flat.inverse(0.1) is None


def test_logistic_has_one_half_one_step_under_the_mark():
    chosen = method("logistic", temperature=0.25)
    assert chosen(3.5) == pytest.approx(0.5)
    assert chosen(3.75) == pytest.approx(0.7310585786)  # sigmoid(1)
    assert method("logistic", temperature=1e-4)(1.0) == 0.0
    with pytest.raises(RecipeError, match="temperature"):
        method("logistic", temperature=0.0)


def test_raters_are_smoothed_and_fall_back_to_the_votes():
    chosen = method("raters")
    assert chosen(3.5, (3.0, 4.0)) == pytest.approx(0.5)
    assert chosen(4.0, (4.0, 5.0)) == pytest.approx(2.5 / 3)
    assert chosen(3.0, (3.0, 3.0)) == pytest.approx(0.5 / 3)
    assert chosen(3.5) == 0.5
    assert chosen(4.0) == 1.0
    assert "votes" in chosen.formula
    assert method("raters", smoothing=0.0)(4.0, (4.0, 5.0, 3.5)) == pytest.approx(2 / 3)
    with pytest.raises(RecipeError, match="smoothing"):
        method("raters", smoothing=-1.0)


def test_a_function_of_ones_own():
    chosen = method("custom", function=f"{__name__}:squared_share")
    assert chosen(3.0) == pytest.approx(0.25)
    with pytest.raises(DataError, match=r"1\.5"):
        method("custom", function=f"{__name__}:too_sure")(3.0)
    for wrong in ("", "nowhere_at_all:function", f"{__name__}:absent", f"{__name__}:SCALE"):
        with pytest.raises(RecipeError, match="function"):
            method("custom", function=wrong)


def test_a_typo_is_answered_with_the_name_meant():
    with pytest.raises(RequestError, match="did you mean 'logistic'") as caught:
        method("logistics")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("grade", [0.5, 5.5, float("nan")])
def test_a_grade_off_the_scale_is_refused(grade):
    with pytest.raises(DataError, match=r"outside the scale 1\.\.5"):
        method("votes")(grade)


def test_events_and_what_they_are_scored_against():
    events = {name: method(name).event for name in METHODS if name != "custom"}
    assert events == {
        "hard": "panel",
        "votes": "rater",
        "raters": "rater",
        "table": "none",
        "linear": "none",
        "logistic": "none",
    }
    assert [event_truth("panel", grade, SCALE) for grade in (3.0, 3.5, 4.0)] == [0.0, 0.0, 1.0]
    for event in ("rater", "latent", "none"):
        assert [event_truth(event, grade, SCALE) for grade in (3.0, 3.5, 4.0)] == [0.0, 0.5, 1.0]
    with pytest.raises(RequestError, match="jury"):
        event_truth("jury", 3.0, SCALE)


def test_votes_is_half_of_two_thresholds():
    # rater = (P(g >= 3.5) + P(g >= 4)) / 2, exact on every step of the scale
    for grade, _ in target_table(method("votes"), SCALE):
        assert votes(grade, SCALE) == (float(grade >= 3.5) + float(grade >= 4.0)) / 2


@pytest.mark.parametrize("text", ["0", "2,0.5", "0,0.6..0.4", "pass, 0.7", "", "1,0.7,0.8,0.9"])
def test_answers_that_are_not_answers(text):
    with pytest.raises(ValueError, match=r"write \[answer|probabilities lie|could not convert"):
        parse_answer(text)
