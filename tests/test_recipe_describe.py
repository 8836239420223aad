"""The form of descriptions: what it writes it reads, what it refuses to read, and what of it a recipe may say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.errors import RecipeError
from luthier.recipe_describe import AnswerForm, DescribeSettings, amount, describe_problems
from luthier.recipefile import load_recipe

FORM = DescribeSettings().form
RECIPE = """
name: describer
model: {base: "toy:phi3-vision"}
data: {sources: {products: {path: cards.jsonl}}, train: [products]}
task: {kind: describe}
"""


def test_the_answer_is_the_users_own_text() -> None:
    said = FORM.write({"title": "Check Wool Scarf", "category": "SCARVES", "price": "430.0"})
    assert said == "Product: Check Wool Scarf, Category: SCARVES, Full Price: 430.0"
    assert FORM.fields == ("title", "category", "price")


@pytest.mark.parametrize(
    "values",
    [
        {"title": "Shirt, cotton, blue", "category": "A, B", "price": "1,290.00"},
        {"title": "Product: x", "category": "Full Price:", "price": "$1290"},
        {"title": "two\nlines", "category": "é", "price": "1290 USD"},
        {"title": "{braces} and <b>", "category": "%s", "price": "USD 1290.50"},
    ],
)
def test_what_is_written_is_read_back(values: dict[str, str]) -> None:
    assert FORM.read(FORM.write(values)) == values
    assert FORM.read(f"  {FORM.write(values)}\n") == values


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "Product: ",
        "A nice scarf.",
        "product: a, category: b, full price: 1",
        "Product: a, Category: b",
        "Product: a, Category: b, Full Price: ",
        "Product: , Category: b, Full Price: 1",
        "Product:  , Category: b, Full Price: 1",
        "Product: a, Category: b, Full Price: 1. I hope this helps!",
        "Product: a, Category: b, Full Price: 1\nProduct: a, Category: b, Full Price: 1",
        "Sure! Product: a, Category: b, Full Price: 1",
        "Product: a, Category: b, Full Price: free",
        "Product: a, Category: b, Full Price: 0",
        "Product: a, Category: b, Category: c, Full Price: 1",
        "Product: a, Category: b, Full Price: 2, Full Price: 1",
        "Product: a; Category: b; Full Price: 1",
    ],
)
def test_an_answer_that_is_not_in_the_form_or_in_two_ways_is_not_read(answer: str) -> None:
    assert FORM.read(answer) is None


@given(st.fixed_dictionaries({name: st.text(max_size=30) for name in ("title", "category", "price")}))
def test_whatever_is_read_writes_the_same_answer(values: dict[str, str]) -> None:
    answer = FORM.write(values)
    found = FORM.read(answer)
    if found is not None:
        assert all(value == value.strip() != "" for value in found.values())
        assert amount(found["price"])
        assert FORM.read(FORM.write(found)) == found


@given(st.text(alphabet="ab,: ", max_size=40))
def test_reading_agrees_with_every_way_to_cut_the_text(text: str) -> None:
    """Against all splits by a regular expression: one split is read, none or several are not."""
    form = AnswerForm("a{x}, b{y}:", (("x", "text"), ("y", "text")))
    stripped = text.strip()
    ways = [
        (stripped[1:at], stripped[at + 3 : -1])
        for at in (match.start() for match in re.finditer("(?=, b)", stripped))
        if stripped.startswith("a") and stripped.endswith(":") and at > 1 and at + 3 < len(stripped) - 1
    ]
    found = form.read(text)
    if len(ways) == 1 and all(value.strip() for value in ways[0]):
        assert found == {"x": ways[0][0].strip(), "y": ways[0][1].strip()}
    else:
        assert found is None


def test_a_form_of_other_fields_and_braces() -> None:
    settings = DescribeSettings(template="{{{what}}} in {where}.", kinds={"what": "category", "where": "text"})
    assert describe_problems(settings) == []
    assert settings.form.write({"what": "cat", "where": "box"}) == "{cat} in box."
    assert settings.form.read("{cat} in box.") == {"what": "cat", "where": "box"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1290", 1290.0),
        ("1,290.00", 1290.0),
        ("1,234,567", 1234567.0),
        ("$1290", 1290.0),
        ("€ 5.5", 5.5),
        ("1290 USD", 1290.0),
        ("USD 1290", 1290.0),
        ("0.01", 0.01),
    ],
)
def test_an_amount_is_read_as_prices_are_written(text: str, value: float) -> None:
    assert amount(text) == value


@pytest.mark.parametrize(
    "text",
    [
        *"1.290,00 12,90 1,29 ,290 1290. .5 0 0.00 -5 1e5 1_000 ١٢ $1290USD usd1 1290!! nan inf".split(),
        *("", "1 290", "$ $1", "9" * 400),
    ],
)
def test_what_is_no_amount_is_not_guessed(text: str) -> None:
    assert amount(text) is None


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("template=no field", "needs fields"),
        ("template='{a}{b}'", "no text between them"),
        ("template='{a'", "task.describe.template"),
        ("template='{a!r}'", "plain name"),
        ("template='{title} and {title}'", "each once"),
        ("template='{title} {image}'", "image has another meaning"),
        ("template='{title} {before}'", "before has another meaning"),
        ("kinds={title: text}", "names title, the template title, category, price"),
        ("kinds.price=number", "'number' is not one of text, category, amount"),
        ("columns={colour: c}", "colour is no field"),
        ("prompt=' '", "task.describe.prompt: is empty"),
    ],
)
def test_a_form_that_cannot_be_read_is_refused_before_anything_starts(tmp_path: Path, override: str, said: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, [f"task.describe.{override}"])
    assert said in str(caught.value)


def test_other_tasks_read_nothing_of_it(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, ["task.kind=chat", "task.describe.prompt=x", "evaluate.describe_rows=3"])
    assert "task.describe.prompt: means nothing for task.kind: chat" in str(caught.value)
    assert "evaluate.describe_rows: means nothing" in str(caught.value)
    with pytest.raises(RecipeError, match=r"described goes with task\.kind: describe"):
        load_recipe(path, ["task.kind=chat", "data.sources.products.format=described"])
