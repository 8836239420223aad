"""Siblings that a list of names and numbers cannot tell: values that moved along, and names that begin sentences."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.alike.entities import NUMBERS, STARTERS, siblings, signatures

WORDS = "the old man walked along a quiet road and then bought some bread with cheese before it was late again".split()
NAMES = "Tom Ann Bob Eve Kim Lee Max Zoe Ian Uma Élie Łucja Ольга".split()


def are_siblings(a: str, b: str) -> bool:
    first, second = signatures([a, b])
    assert siblings(first, second) == siblings(second, first)
    return siblings(first, second)


def template(rng: random.Random, slots: int) -> str:
    """Lower-case words, no two neighbours alike, with `{}` between every few of them."""
    return " {} ".join(" ".join(rng.sample(WORDS, rng.randint(2, 6))) for _ in range(slots + 1))


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 10**6), st.integers(2, 9), st.integers(1, 3))
def test_values_that_moved_along_a_template_make_siblings(seed: int, slots: int, by: int) -> None:
    rng = random.Random(seed)
    text, first = template(rng, slots), rng.randint(1, 90)
    ours = text.format(*range(first, first + slots))
    assert are_siblings(ours, text.format(*range(first + by, first + by + slots)))
    names = rng.sample(NAMES, len(NAMES))[: slots + 1]
    assert are_siblings(text.format(*(names[:slots] * 9)), text.format(*(names[1:] * 9)))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("What is 3 + 2?", "What is 4 + 3?"),
        ("It took 3 days and 2 nights.", "It took 4 days and 3 nights."),
        ("3 2", "4 3"),
        ("so Tom met Ann and later Bob left", "so Ann met Bob and later Max left"),
        ("he has 3 and a large 2 left", "he has 4 and a big 3 left"),
        ("two birds saw three cats", "three birds saw four cats"),
    ],
)
def test_a_kept_value_in_another_place_is_no_kept_value(first: str, second: str) -> None:
    assert are_siblings(first, second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        # One name or number more, another one less, each with its own words around it.
        (
            "on Monday we ran and at the old mill we saw Tom again",
            "we ran and at the old mill we saw Tom again with Eve",
        ),
        ("in 1990 it rained and after that 7 men came by", "it rained and after that 7 men came by in only 2 cars"),
        ("they took 1 2 3 4 5 with them", "they took 1 3 4 5 with them"),
    ],
)
def test_a_value_that_went_and_one_that_came_elsewhere_make_no_siblings(first: str, second: str) -> None:
    assert not are_siblings(first, second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Tom has a red hat.", "Ann has a red hat."),
        ("The day is fine. Tom has a red hat.", "The day is fine. Ann has a red hat."),
        ("Élie has a red hat.", "Łucja has a red hat."),
        ("Tom has hats.\nEve has none.", "Ann has hats.\nBob has none."),
        ("Paris is the capital.", "Rome is the capital."),
        ("Molly sings", "King sings"),
    ],
)
def test_another_name_at_a_sentences_start_makes_siblings_where_all_else_is_equal(first: str, second: str) -> None:
    assert are_siblings(first, second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("The hat is red.", "This hat is red."),
        ("He has a red hat.", "Tom has a red hat."),
        ("Finally it rained.", "Suddenly it rained."),
        ("Using a hat helps.", "Wearing a hat helps."),
        ("Sure! It is red.", "Certainly! It is red."),
        ("Explain the hat.", "Describe the hat."),
        ("tom has a red hat.", "ann has a red hat."),
        ("Tom has a red hat.", "ann has a red hat."),
        ("Tom has a red hat.", "Ann has a big hat."),
        ("Tom has a red hat.", "Ann has a red hat today."),
        ("TOM has a red hat", "Tom has a red hat"),
    ],
)
def test_other_first_words_make_no_siblings(first: str, second: str) -> None:
    assert not are_siblings(first, second)


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(STARTERS), st.sampled_from(STARTERS + NUMBERS), st.integers(0, 10**6))
def test_a_common_first_word_is_never_a_name(one: str, other: str, seed: int) -> None:
    rest = " ".join(random.Random(seed).sample(WORDS, 8))
    same_kind = other in STARTERS
    assert not same_kind or not are_siblings(f"{one.capitalize()} {rest}.", f"{other.capitalize()} {rest}.")
    assert not are_siblings(f"{one.capitalize()} {rest}.", f"Tom {rest}.")


def test_the_words_of_the_lists_are_in_lower_case_and_of_one_kind() -> None:
    assert all(word == word.lower() for word in STARTERS + NUMBERS)
    assert not set(STARTERS) & set(NUMBERS)
    assert len(set(STARTERS)) == len(STARTERS)
