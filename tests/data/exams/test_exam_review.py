"""Notes on an exam say what is there, with the p-values of scipy's own tests."""

import numpy as np
import pytest
from scipy import stats

from luthier.data.exams.exam import Exam, ExamItem, exam_digest, exam_record
from luthier.data.exams.review import notes_of, uniform_p


def item(n: int, answer: int, options: tuple[str, ...] = ("left", "right"), question: str = "") -> ExamItem:
    return ExamItem(f"i{n}", question or f"Question {n}?", options, answer)


def note(notes: list[str], word: str) -> str:
    (found,) = [one for one in notes if word in one]
    return found


def test_the_p_of_two_cells_is_the_exact_binomial_and_of_more_the_chi_square() -> None:
    two = np.array([70.0, 92.0])
    assert uniform_p([(two, np.full(2, 0.5))]) == pytest.approx(stats.binomtest(70, 162).pvalue)
    four = np.array([10.0, 20.0, 30.0, 12.0])
    assert uniform_p([(four, np.full(4, 0.25))]) == pytest.approx(stats.chisquare(four).pvalue)
    both = stats.chisquare(two).statistic + stats.chisquare(four).statistic
    assert uniform_p([(two, np.full(2, 0.5)), (four, np.full(4, 0.25))]) == pytest.approx(stats.chi2.sf(both, 4))


def test_the_p_is_small_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    small = 0
    for _ in range(2000):
        drawn = [(np.bincount(rng.integers(0, k, 90), minlength=k).astype(float), np.full(k, 1 / k)) for k in (3, 4)]
        small += uniform_p(drawn) < 0.05
    assert 0.035 < small / 2000 < 0.065


def test_a_right_option_that_always_stands_first_is_said_loudly() -> None:
    notes = notes_of([item(n, 0) for n in range(5)], [])
    assert notes[0].startswith("the right option always stands first")
    assert "always stands in place 2" in notes_of([item(n, 1) for n in range(5)], [])[0]


def test_places_and_lengths_are_counted_with_their_chance() -> None:
    items = [item(n, n % 4 == 0, (f"a long option, {n}", "short")) for n in range(40)]
    notes = notes_of(items, [])
    p = stats.binomtest(30, 40).pvalue
    assert f"places 1 to 2 this often: 30, 10 (equal shares: p = {p:.3f})" in note(notes, "places")
    assert f"right one in 30 (by chance 20.0: p = {p:.3f})" in note(notes, "longest")
    three = [item(n, n % 3, ("xx", "yy", "zz")) for n in range(3)]
    assert "1, 1, 1 (equal shares: p = 1.000)" in note(notes_of(three, []), "places")
    assert not any("longest" in one for one in notes_of(three, []))  # all lengths are tied
    assert not any("longest" in one for one in notes_of([item(n, n % 2, ("no", "yes")) for n in range(9)], []))


def test_repeats_are_counted_and_contradictions_named() -> None:
    items = [
        item(0, 0, question="Which?"),
        item(1, 1, ("right", "left"), "Which?"),
        item(2, 1, question="Which?"),
        item(3, 1),
        item(4, 0),
    ]
    said = note(notes_of(items, []), "ask what another asks")
    assert said.startswith("2 items ask what another asks, with the same options; the first are i0 and i1")
    assert said.endswith("1 such questions have answers that contradict each other")
    assert "contradict" not in note(notes_of([*items[:2], items[3]], []), "ask what")


def test_chance_and_majority_are_those_of_guessing_and_of_one_place() -> None:
    items = [item(0, 1), item(1, 1), item(2, 3, ("a", "b", "c", "d"))]
    exam = Exam("e", items, exam_digest(items), "options", "0")
    assert exam.chance == pytest.approx((0.5 + 0.5 + 0.25) / 3)
    assert exam.majority == pytest.approx(2 / 3)
    record = exam_record(exam, {"method": "letters"}).to_json()
    assert (record["items"], record["options"], record["chance"], record["settings"]) == (
        3,
        [2, 4],
        exam.chance,
        {"method": "letters"},
    )


def test_an_option_that_another_one_begins_with_is_said() -> None:
    found = notes_of([item(1, 0), item(2, 1, ("a cat", "a cat, black")), item(3, 0, ("cat", "category"))], [])
    assert note(found, "beginning").startswith("in 1 items an option is the beginning of another")
    assert note(found, "beginning").endswith("the first is i2")
    assert not any("beginning" in one for one in notes_of([item(1, 0), item(3, 0, ("cat", "category"))], []))
