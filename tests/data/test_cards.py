"""Drawn product cards: equal seeds give equal bytes, and the picture shows all that its row says."""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path
from statistics import median, pstdev
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from luthier.data.cards import CATEGORIES, COLUMNS, TABLE, write_cards
from luthier.data.drawing import COLOURS, GARMENTS, PATTERNS, SIDE, Look, draw_card
from luthier.errors import ExistsError, RequestError
from luthier.files import read_jsonl

ROWS = 1200


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cards(tmp_path_factory.mktemp("made") / "cards", ROWS, 5)


@pytest.fixture(scope="module")
def rows(table: Path) -> list[dict[str, Any]]:
    return read_jsonl(table)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def pixels(look: Look, seed: int = 0) -> np.ndarray[Any, np.dtype[np.int16]]:
    return np.asarray(draw_card(look, random.Random(seed)), dtype=np.int16)


def test_equal_arguments_give_equal_bytes_and_other_seeds_other_products(tmp_path: Path) -> None:
    first, second, other = (write_cards(tmp_path / name, 30, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert contents(first.parent) == contents(second.parent)
    codes = [{row[COLUMNS["group"]] for row in read_jsonl(one)} for one in (first, other)]
    assert not codes[0] & codes[1]
    assert first.read_bytes() != other.read_bytes()


def test_more_rows_begin_with_those_of_fewer(tmp_path: Path, table: Path, rows: list[dict[str, Any]]) -> None:
    few = write_cards(tmp_path / "few", 40, 5)
    assert read_jsonl(few) == rows[:40]
    for row in rows[:40]:
        assert (few.parent / row["image"]).read_bytes() == (table.parent / row["image"]).read_bytes()


def test_every_row_has_its_picture_and_the_columns_of_a_price_list(table: Path, rows: list[dict[str, Any]]) -> None:
    assert len(rows) == ROWS
    assert len({row["image"] for row in rows}) == ROWS
    assert all(set(COLUMNS.values()) <= set(row) for row in rows)
    for row in rows[:50]:
        with Image.open(table.parent / row["image"]) as picture:
            assert (picture.size, picture.mode, picture.format) == ((SIDE, SIDE), "RGB", "PNG")


def test_a_title_says_colour_pattern_and_garment_and_the_category_is_that_of_the_garment(
    rows: list[dict[str, Any]],
) -> None:
    for row in rows:
        colour, *pattern, garment = row["title"].split()
        assert colour in COLOURS
        assert pattern in ([], ["Striped"], ["Checked"])
        assert row["category3_code"] == CATEGORIES[garment].code
    assert set(CATEGORIES) == set(GARMENTS)
    counts = Counter(row["category3_code"] for row in rows)
    assert len(counts) == 10
    assert min(counts.values()) > ROWS / 20


def test_two_pictures_of_a_product_say_the_same_and_are_not_the_same(table: Path, rows: list[dict[str, Any]]) -> None:
    products: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        products.setdefault(row["product_code"], []).append(row)
    several = [same for same in products.values() if len(same) > 1]
    assert 0.1 < sum(len(same) - 1 for same in several) / ROWS < 0.2
    for same in several:
        assert len({(row["title"], row["category3_code"], row["full_price"]) for row in same}) == 1
        assert len({(table.parent / row["image"]).read_bytes() for row in same}) == len(same)


def test_prices_follow_category_and_pattern_and_neither_says_them(rows: list[dict[str, Any]]) -> None:
    assert all(row["full_price"] % 10 == 0 and 100 <= row["full_price"] <= 9990 for row in rows)

    def typical(**wanted: str) -> float:
        chosen = [row for row in rows if all(wanted[key] in row[key] for key in wanted)]
        return float(median(row["full_price"] for row in chosen))

    assert typical(category3_code="COATS") > 1.5 * typical(category3_code="SHIRTS")
    assert typical(title="Checked") > 1.1 * typical(title="Striped")
    within = [math.log(row["full_price"]) for row in rows if row["category3_code"] == "BAGS"]
    assert pstdev(within) > 0.4
    best = max(
        sum(abs(row["full_price"] - guess) <= 0.1 * row["full_price"] for row in rows) for guess in range(100, 3000, 10)
    )
    assert best / ROWS < 0.2  # a constant price is a poor answer


@settings(max_examples=40, deadline=None)
@given(
    look=st.builds(
        Look,
        st.sampled_from(GARMENTS),
        st.sampled_from(sorted(COLOURS)),
        st.sampled_from(PATTERNS),
        st.integers(100, 9990).map(lambda price: f"${price}"),
    ),
    seed=st.integers(0, 10_000),
    data=st.data(),
)
def test_what_differs_in_a_look_is_seen_and_nothing_else_moves(look: Look, seed: int, data: st.DataObject) -> None:
    garment = data.draw(st.sampled_from([one for one in GARMENTS if one != look.garment]))
    tag = data.draw(st.integers(100, 9990).map(lambda price: f"${price}").filter(lambda one: one != look.tag))
    card = pixels(look, seed)
    other_tag = np.abs(pixels(Look(look.garment, look.colour, look.pattern, tag), seed) - card).sum(-1)
    assert other_tag[87:].any()
    assert not other_tag[:87].any()
    other_garment = np.abs(pixels(Look(garment, look.colour, look.pattern, look.tag), seed) - card).sum(-1)
    assert (other_garment > 30).sum() > 100
    assert not other_garment[87:].any()


def test_the_tag_stands_near_its_corner_with_dark_signs_on_white(table: Path, rows: list[dict[str, Any]]) -> None:
    for row in rows[:100]:
        card = np.asarray(Image.open(table.parent / row["image"]).convert("L"))
        length = len(f"${row['full_price']}") * 12
        inside = card[91:104, 9 : 5 + length]
        assert set(np.unique(inside)) <= {20, 90, 255}
        assert 0.2 < (inside == 20).mean() < 0.6


def test_a_folder_that_is_there_and_no_rows_are_refused(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(ExistsError):
        write_cards(tmp_path / "there", 3)
    with pytest.raises(RequestError, match="0 cards"):
        write_cards(tmp_path / "none", 0)
    assert write_cards(tmp_path / "some", 1).name == TABLE
