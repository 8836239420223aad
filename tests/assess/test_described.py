"""Descriptions scored field by field, and the constants that they are held against, each against a plain reference."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.assess import described
from luthier.assess.described import Constants, constant_scores, edit_similarity, row_scores, summaries, token_f1
from luthier.errors import DataError
from luthier.recipe_describe import DescribeSettings

FORM = DescribeSettings().form
ROWS = [
    {"title": f"Item {number}", "category": category, "price": str(price)}
    for number, (category, price) in enumerate(
        [("BAGS", 100), ("BAGS", 104), ("bags", 108), ("HATS", 200), ("HATS", 900), ("SHOES", 5000)]
    )
]
CONSTANTS = Constants.of(FORM, ROWS)
TRUTH = {"title": "Red Wool Scarf", "category": "SCARVES", "price": "400"}
PRICES = st.lists(st.integers(1, 10_000), min_size=1, max_size=30)


def constants(prices: list[int]) -> described.AmountConstants:
    return Constants.of(FORM, [{**TRUTH, "price": str(price)} for price in prices]).amounts["price"]


@pytest.mark.parametrize(
    ("answer", "f1", "edits"),
    [
        ("Red Wool Scarf", 1.0, 1.0),
        ("red  wool SCARF", 1.0, 1.0),
        ("Red Scarf", 0.8, 1 - 5 / 14),
        ("Scarf, red, wool!", 1.0, None),
        ("Blue Hat", 0.0, None),
        ("red red red", 2 / 6, None),
        ("", 0.0, 0.0),
    ],
)
def test_titles_are_near_by_words_and_by_letters(answer: str, f1: float, edits: float | None) -> None:
    assert token_f1(answer, TRUTH["title"]) == pytest.approx(f1)
    if edits is not None:
        assert edit_similarity(answer, TRUTH["title"]) == pytest.approx(edits)


@given(st.text(alphabet="abc ", max_size=12), st.text(alphabet="abc ", max_size=12))
def test_edits_are_those_of_the_recursive_definition(a: str, b: str) -> None:
    def distance(i: int, j: int, seen: dict[tuple[int, int], int]) -> int:
        if (i, j) not in seen:
            if not i or not j:
                seen[i, j] = i + j
            else:
                swap = distance(i - 1, j - 1, seen) + (one[i - 1] != two[j - 1])
                seen[i, j] = min(distance(i - 1, j, seen) + 1, distance(i, j - 1, seen) + 1, swap)
        return seen[i, j]

    one, two = " ".join(a.split()), " ".join(b.split())
    longest = max(len(one), len(two), 1)
    assert edit_similarity(a, b) == pytest.approx(1 - distance(len(one), len(two), {}) / longest)
    assert edit_similarity(a, b) == edit_similarity(b, a)


def test_one_answer_gets_a_figure_for_every_score() -> None:
    said = {"title": "Red Scarf", "category": " scarves ", "price": "$440"}
    found = row_scores(FORM, CONSTANTS, said, TRUTH)
    assert found["unparseable"] == 0
    assert found["category.accuracy"] == 1
    assert found["price.log_error"] == pytest.approx(math.log(1.1))
    assert (found["price.within_10"], found["price.within_25"]) == (1, 1)
    assert row_scores(FORM, CONSTANTS, {**said, "price": "360"}, TRUTH)["price.within_10"] == 1
    assert row_scores(FORM, CONSTANTS, {**said, "price": "440.1"}, TRUTH)["price.within_10"] == 0


@given(PRICES, st.integers(1, 20_000))
def test_what_is_not_in_the_form_is_wrong_in_every_score_and_never_better_than_a_constant(
    prices: list[int], truth: int
) -> None:
    known = Constants.of(FORM, [{**TRUTH, "price": str(price)} for price in prices])
    true = {**TRUTH, "price": str(truth)}
    lost, blind = row_scores(FORM, known, None, true), constant_scores(FORM, known, true)
    assert lost["unparseable"] == 1
    zeros = "title.token_f1 title.edit_similarity category.accuracy price.within_10 price.within_25".split()
    assert all(lost[name] == 0 for name in zeros)
    assert math.isfinite(lost["price.log_error"])
    for score in described.QUANTILES:
        assert lost["price.log_error"] >= blind[f"price.{score}"] - 1e-9


def test_the_commonest_category_is_the_constant_whatever_its_letters_case() -> None:
    assert CONSTANTS.categories == {"category": "BAGS"}
    assert constant_scores(FORM, CONSTANTS, {**TRUTH, "category": "Bags"})["category.accuracy"] == 1
    assert constant_scores(FORM, CONSTANTS, TRUTH)["category.accuracy"] == 0


@given(PRICES)
def test_no_constant_is_within_the_share_of_more_training_prices(prices: list[int]) -> None:
    found = constants(prices)
    for share in described.WITHIN:
        best = found.best[described.within_name(share)]
        own = sum(described._near(best, price, share) for price in prices)
        edges = [price * (1 + side * share) for price in prices for side in (-1, 0, 1)]  # optima touch an edge
        assert own == max(sum(described._near(edge, price, share) for price in prices) for edge in edges)


@given(PRICES)
def test_no_constant_has_a_lower_order_statistic_of_the_training_errors(prices: list[int]) -> None:
    found, logs = constants(prices), np.log(np.array(prices, dtype=float))
    for score, share in described.QUANTILES.items():
        place = math.ceil(share * len(prices)) - 1

        def error(log: float, place: int = place) -> float:
            return float(np.sort(np.abs(logs - log))[place])

        others = [(a + b) / 2 for a in logs for b in logs]  # the best one lies between two of them
        assert error(math.log(found.best[score])) <= min(map(error, others)) + 1e-9


def test_training_rows_without_the_form_are_no_ground_for_scores() -> None:
    with pytest.raises(DataError, match=r"task\.describe\.template"):
        Constants.of(FORM, [])


def test_summaries_name_a_column_that_every_answer_has() -> None:
    columns = row_scores(FORM, CONSTANTS, None, TRUTH)
    found = summaries(FORM)
    assert {column for column, _, _ in found.values()} == set(columns)
    values = np.array([0.1, 0.2, 0.9, 0.4])
    assert found["price.median_log_error"][1](values) == pytest.approx(np.median(values))
    assert found["price.p90_log_error"][1](values) == pytest.approx(np.quantile(values, 0.9))
    assert [name for name, (_, _, higher) in found.items() if not higher] == [
        "unparseable",
        "price.median_log_error",
        "price.p90_log_error",
    ]
    assert Counter(name.partition(".")[0] for name in found)["price"] == 4


def test_an_answer_of_endless_digits_has_an_error_that_is_a_number():
    for answer in ("9" * 300, "0." + "0" * 300 + "1"):
        for price in ("1" + "0" * 100, "0." + "0" * 100 + "1"):
            found = row_scores(FORM, CONSTANTS, {**TRUTH, "price": answer}, {**TRUTH, "price": price})
            assert math.isfinite(found["price.log_error"])
