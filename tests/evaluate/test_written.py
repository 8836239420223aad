"""The strict reading of written answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.evaluate.written import parse_choice

OPTIONS = ("a red fox", "The blue whale", "42.")


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("B", 1),
        (" b \n", 1),
        ("(B)", 1),
        ("B.", 1),
        ("B)", 1),
        ("B:", 1),
        ("Answer: B", 1),
        ("Answer: (C)", 2),
        ("The correct answer is A.", 0),
        ("Option C", 2),
        ("B. The blue whale", 1),
        ("(B) the blue  whale.", 1),
        ("The blue whale", 1),
        ("the blue whale.", 1),
        ("42", 2),
        ("A red fox", 0),
        ("", -1),
        ("D", -1),
        ("A or B", -1),
        ("A B", -1),
        ("A, B", -1),
        ("AB", -1),
        ("(B", -1),
        ("B. a red fox", -1),
        ("B because whales are blue", -1),
        ("I think it is B", -1),
        ("The blue whale or a red fox", -1),
        ("blue whale", -1),
    ],
)
def test_an_answer_names_one_option_or_none(text: str, choice: int) -> None:
    assert parse_choice(text, OPTIONS) == choice


def test_a_letter_that_is_another_options_text_names_none() -> None:
    assert parse_choice("B", ("B", "A")) == -1
    assert parse_choice("A", ("A", "B")) == 0


@given(st.text(max_size=40), st.lists(st.text(min_size=1, max_size=6), min_size=2, max_size=5, unique=True))
def test_any_text_names_an_option_that_is_there_or_none(text: str, options: list[str]) -> None:
    assert -1 <= parse_choice(text, options) < len(options)


def test_an_answer_without_a_word_names_none_whatever_the_options() -> None:
    assert parse_choice(" . ", (".", "!")) == parse_choice("", (".", "!")) == -1
