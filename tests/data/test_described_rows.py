"""A table of products with pictures as rows: what is asked and answered, what is dropped, which rows are one."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from luthier.data.building.build import build
from luthier.data.building.context import Context
from luthier.data.cards import COLUMNS, write_cards
from luthier.data.shapes.described import adapter
from luthier.data.table import iter_rows
from luthier.errors import DataError
from luthier.files import read_jsonl, write_jsonl
from luthier.recipe_data import Source
from luthier.recipe_describe import DescribeSettings
from luthier.recipefile import load_recipe, stage_recipes
from luthier.schema import Draft, Drop
from luthier.stages.sources import table_request

SETTINGS = DescribeSettings(columns={"category": "category3_code", "price": "full_price"})
RECORD = {"image": "", "title": "Red Scarf", "category3_code": "SCARVES", "full_price": 430.0, "brand": "L"}


def picture(colour: int = 0) -> bytes:
    packed = io.BytesIO()
    Image.new("RGB", (8, 6), (colour, 10, 10)).save(packed, "PNG")
    return packed.getvalue()


def read(record: dict[str, Any], settings: DescribeSettings = SETTINGS) -> Draft | Drop:
    return adapter(Context(Source(name="products"), describe=settings))("row 1", {"image": picture(), **record})


def test_a_row_asks_about_the_picture_and_answers_in_the_form() -> None:
    draft = read({**RECORD, "image": {"bytes": picture(), "path": None}})
    assert isinstance(draft, Draft)
    user, assistant = draft.row.messages
    assert [part.type for part in user.content] == ["image", "text"]
    assert user.text == "What is shown in this image?"
    assert assistant.text == "Product: Red Scarf, Category: SCARVES, Full Price: 430.0"
    assert draft.row.group == "red scarf"
    assert json.loads(draft.row.more) == {"brand": "L"}
    assert list(draft.blobs.values()) == [picture()]


@pytest.mark.parametrize(
    ("change", "reason", "said"),
    [
        ({"title": None}, "missing_field", "title: title is empty"),
        ({"title": "  "}, "missing_field", "title"),
        ({"category3_code": float("nan")}, "missing_field", "category: category3_code"),
        ({"full_price": None}, "missing_field", "price: full_price"),
        ({"full_price": 0}, "bad_amount", "'0'"),
        ({"full_price": "on request"}, "bad_amount", "'on request'"),
        ({"title": "A, Category: B"}, "unclear_answer", "more than one way"),
        ({"image": None}, "missing_media", "image: image is empty"),
        ({"image": "https://shop.example/1.jpg"}, "remote_media", "shop.example"),
        ({"image": b"<html>not a picture</html>"}, "unreadable_image", ""),
        ({"title": ["a"]}, "not_text", "title"),
    ],
)
def test_what_makes_no_row_is_dropped_with_its_reason(change: dict[str, Any], reason: str, said: str) -> None:
    found = read({**RECORD, "image": picture(), **change})
    assert isinstance(found, Drop)
    assert found.reason == reason
    assert said in found.detail


def test_a_column_that_is_not_there_is_named_with_those_that_are() -> None:
    found = read({"title": "a", "price": 3})
    assert isinstance(found, Drop)
    assert "category3_code is not there (columns: image, title, price)" in found.detail
    grouped = DescribeSettings(columns=SETTINGS.columns, group="sku")
    found = read({**RECORD, "image": picture()}, grouped)
    assert isinstance(found, Drop)
    assert "task.describe.group: sku is not there" in found.detail


def test_the_product_is_the_group_where_a_column_names_it() -> None:
    grouped = DescribeSettings(columns=SETTINGS.columns, group="sku")
    rows = [read({**RECORD, "image": picture(), "sku": sku}, grouped) for sku in (7, 7.0, None)]
    assert [one.row.group for one in rows if isinstance(one, Draft)] == ["7", "7", "red scarf"]


@pytest.fixture
def cards(tmp_path: Path) -> Path:
    recipe = tmp_path / "recipe.yaml"
    table = write_cards(tmp_path / "cards", 80, seed=5)
    recipe.write_text(
        f"""
name: cards
model: {{base: "toy:phi3-vision"}}
data: {{sources: {{products: {{path: {table}}}}}, train: [products], validation_fraction: 0.3}}
task:
  kind: describe
  describe:
    group: {COLUMNS["group"]}
    columns: {{category: {COLUMNS["category"]}, price: {COLUMNS["price"]}}}
"""
    )
    return recipe


def test_a_table_of_cards_is_split_by_product_and_no_product_is_on_both_sides(cards: Path, tmp_path: Path) -> None:
    stages = stage_recipes(load_recipe(cards))
    built = build(table_request(stages), tmp_path / "table", None)
    rows = [item.row for item in iter_rows(built.folder)]
    sides: dict[str, set[str]] = {}
    for row in rows:
        sides.setdefault(row.group, set()).add(row.split)
    assert all(len(splits) == 1 for splits in sides.values())
    assert len(sides) < len(rows), "some products have two pictures"
    assert {row.split for row in rows} == {"train", "validation"}
    truth = {row[COLUMNS["title"]] for row in read_jsonl(tmp_path / "cards" / "cards.jsonl")}
    read_back = [stages["main"].task.describe.form.read(row.messages[-1].text) for row in rows]
    assert {values["title"] for values in read_back if values} <= truth
    assert all(read_back)


def test_a_table_without_a_row_that_can_be_used_says_the_first_reason(cards: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "other.jsonl", [{"name": "a", "image": "x.png"}])
    stages = stage_recipes(load_recipe(cards, [f"data.sources.products.path={tmp_path / 'other.jsonl'}"]))
    with pytest.raises(DataError, match="missing_field"):
        build(table_request(stages), tmp_path / "table", None)
