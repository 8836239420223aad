"""A shop's products as a table with pictures: what a base that sees can learn to describe, made on the spot.

Each row is a picture of a product in the columns of a price list as shops publish it. The picture shows everything
that the text says: garment, colour and pattern, and the price on its tag. A price follows from the category, the
pattern and chance, so that a guess from the garment is better than a constant and much worse than reading the tag.
Knows products and prices; refuses to know models, prompts and scores. What is drawn is in `drawing`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.data.drawing import COLOURS, PATTERNS, Look, draw_card
from luthier.errors import RequestError
from luthier.files import atomic_folder, write_jsonl

TABLE, PICTURES = "cards.jsonl", "pictures"
"""The files of `write_cards`: the table, and the folder of the pictures beside it."""
COLUMNS: Mapping[str, str] = {
    "image": "image",
    "title": "title",
    "category": "category3_code",
    "price": "full_price",
    "group": "product_code",
}
"""What a column holds -> its name. `image` is a path beside the table, `group` the product."""
SECOND = 0.15
"""Share of the rows that are another picture of the product before them."""
_SPREAD = 0.45
"""Standard deviation of the logarithm of a price among products of one category and pattern."""
_DEARER = {"Plain": 1.0, "Striped": 1.15, "Checked": 1.35}


@dataclass(frozen=True, slots=True)
class Category:
    """A kind of product: its code, the line above it, and the median price of a plain one in dollars."""

    code: str
    line: str
    median: float


CATEGORIES: dict[str, Category] = {
    "Shirt": Category("SHIRTS", "CLOTHING", 490),
    "Trousers": Category("TROUSERS", "CLOTHING", 650),
    "Dress": Category("DRESSES", "CLOTHING", 1250),
    "Coat": Category("COATS", "CLOTHING", 2100),
    "Skirt": Category("SKIRTS", "CLOTHING", 720),
    "Bag": Category("BAGS", "ACCESSORIES", 1500),
    "Shoe": Category("SHOES", "ACCESSORIES", 780),
    "Hat": Category("HATS", "ACCESSORIES", 380),
    "Scarf": Category("SCARVES", "ACCESSORIES", 430),
    "Belt": Category("BELTS", "ACCESSORIES", 350),
}
"""By what `drawing` calls the garment."""


@dataclass(frozen=True, slots=True)
class Product:
    """One product."""

    code: str
    garment: str
    colour: str
    pattern: str
    price: int

    @property
    def title(self) -> str:
        """Colour, pattern unless plain, garment: "Red Checked Scarf"."""
        words = (self.colour, self.pattern, self.garment)
        return " ".join(word for word in words if word != "Plain")


def write_cards(folder: Path, rows: int, seed: int = 17) -> Path:
    """Write TABLE and `rows` pictures (PNG) into a new folder; returns the table's path.

    Equal arguments give equal bytes, and a larger number of rows begins with those of a smaller one; two seeds have no
    product in common. Raises RequestError for no rows, ExistsError where the folder exists, DiskError where it cannot
    be written.
    """
    if rows < 1:
        raise RequestError(f"a table of {rows} cards", "ask for 1 or more")
    with atomic_folder(folder, {"rows": rows, "seed": seed}, durable=False) as new:
        (new / PICTURES).mkdir()
        records = []
        for number, (product, draw) in enumerate(_pictured(rows, seed), 1):
            place = f"{PICTURES}/{number:05d}.png"
            look = Look(product.garment, product.colour, product.pattern, f"${product.price}")
            draw_card(look, draw).save(new / place, compress_level=1)
            records.append(_record(product, place))
        write_jsonl(new / TABLE, records)
    return folder / TABLE


def _pictured(rows: int, seed: int) -> Iterator[tuple[Product, random.Random]]:
    """The product of each row, and the chance that its picture follows."""
    product = None
    for row in range(rows):
        draw = random.Random(f"{seed}/{row}")  # a row by itself: rows before it do not move it
        if product is None or draw.random() >= SECOND:
            product = _product(f"{seed}-{row:05d}", draw)
        yield product, draw


def _product(code: str, draw: random.Random) -> Product:
    garment, colour, pattern = draw.choice(list(CATEGORIES)), draw.choice(list(COLOURS)), draw.choice(PATTERNS)
    price = CATEGORIES[garment].median * _DEARER[pattern] * draw.lognormvariate(0, _SPREAD)
    return Product(code, garment, colour, pattern, min(9990, max(100, round(price / 10) * 10)))


def _record(product: Product, image: str) -> dict[str, Any]:
    """A row as price lists have it. Prices are whole dollars."""
    category = CATEGORIES[product.garment]
    return {
        "country_code": "USA",
        "currency_code": "USD",
        "brand": "Luthier",
        "category1_code": category.line,
        COLUMNS["category"]: category.code,
        COLUMNS["group"]: product.code,
        COLUMNS["title"]: product.title,
        COLUMNS["image"]: image,
        COLUMNS["price"]: product.price,
    }
