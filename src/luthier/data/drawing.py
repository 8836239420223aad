"""Pictures of garments with a price tag, drawn from polygons and a font of our own; no file is read.

Knows shapes, colours, patterns and pixels; refuses to know prices, titles, tables and where pictures are kept. The
card is SIDE pixels square: the garment above, the tag below it. Shapes lie in a unit square, y downwards.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageDraw

Point = tuple[float, float]
Colour = tuple[int, int, int]
SIDE = 112
"""Pixels: divided by 7, 8, 14, 16, 28 and 56, so that patches of the usual encoders cover a card."""

COLOURS: dict[str, Colour] = {
    "Red": (200, 40, 40),
    "Blue": (40, 80, 190),
    "Green": (40, 140, 60),
    "Yellow": (230, 200, 50),
    "Pink": (240, 140, 180),
    "Beige": (205, 175, 130),
    "Grey": (130, 130, 135),
    "Black": (35, 35, 40),
}
PATTERNS = ("Plain", "Striped", "Checked")
_BACKGROUNDS: tuple[Colour, ...] = ((245, 243, 238), (228, 236, 243), (238, 229, 222), (226, 240, 228), (240, 228, 240))
_LARGEST, _SMALLEST = 78, 66
"""Pixels of a garment's square."""
_STRIPE, _THREAD = 9, 3
"""Pixels from one stripe to the next, and of a stripe."""
_DOT, _ADVANCE = 2, 12
"""Pixels of a dot of the font, and from one sign to the next."""

_SHAPES: dict[str, tuple[tuple[Point, ...], ...]] = {
    "Shirt": (
        (
            *((0.30, 0.08), (0.42, 0.08), (0.50, 0.18), (0.58, 0.08), (0.70, 0.08), (1.00, 0.32), (0.88, 0.48)),
            *((0.74, 0.38), (0.74, 0.92), (0.26, 0.92), (0.26, 0.38), (0.12, 0.48), (0.00, 0.32)),
        ),
    ),
    "Trousers": (((0.26, 0.02), (0.74, 0.02), (0.84, 0.98), (0.60, 0.98), (0.50, 0.36), (0.40, 0.98), (0.16, 0.98)),),
    "Dress": (
        (
            *((0.36, 0.02), (0.43, 0.14), (0.57, 0.14), (0.64, 0.02), (0.72, 0.06), (0.62, 0.40), (0.92, 0.98)),
            *((0.08, 0.98), (0.38, 0.40), (0.28, 0.06)),
        ),
    ),
    "Coat": (
        (
            *((0.34, 0.02), (0.50, 0.26), (0.66, 0.02), (0.80, 0.06), (1.00, 0.70), (0.86, 0.74), (0.76, 0.36)),
            *((0.82, 0.98), (0.53, 0.98), (0.50, 0.50), (0.47, 0.98), (0.18, 0.98), (0.24, 0.36), (0.14, 0.74)),
            *((0.00, 0.70), (0.20, 0.06)),
        ),
    ),
    "Skirt": (((0.34, 0.22), (0.66, 0.22), (0.96, 0.82), (0.04, 0.82)),),
    "Bag": (
        ((0.06, 0.42), (0.94, 0.42), (0.86, 0.94), (0.14, 0.94)),
        (
            *((0.28, 0.42), (0.32, 0.12), (0.68, 0.12), (0.72, 0.42), (0.64, 0.42), (0.61, 0.20), (0.39, 0.20)),
            (0.36, 0.42),
        ),
    ),
    "Shoe": (
        (
            *((0.04, 0.34), (0.30, 0.30), (0.44, 0.50), (0.78, 0.60), (0.98, 0.72), (0.98, 0.82), (0.30, 0.82)),
            *((0.24, 0.72), (0.18, 0.94), (0.06, 0.94)),
        ),
    ),
    "Hat": (
        ((0.26, 0.64), (0.32, 0.22), (0.68, 0.22), (0.74, 0.64), (1.00, 0.68), (0.96, 0.80), (0.04, 0.80), (0.0, 0.68)),
    ),
    "Scarf": (
        ((0.18, 0.10), (0.82, 0.10), (0.86, 0.34), (0.14, 0.34)),
        ((0.20, 0.34), (0.44, 0.34), (0.36, 0.98), (0.10, 0.98)),
        ((0.56, 0.34), (0.80, 0.34), (0.92, 0.80), (0.68, 0.80)),
    ),
    "Belt": (
        ((0.00, 0.42), (0.72, 0.42), (0.72, 0.60), (0.00, 0.60)),
        ((0.72, 0.32), (1.00, 0.32), (1.00, 0.70), (0.72, 0.70)),
    ),
}
GARMENTS = tuple(_SHAPES)
_FONT = {
    "0": "01110 10001 10011 10101 11001 10001 01110",
    "1": "00100 01100 00100 00100 00100 00100 01110",
    "2": "01110 10001 00001 00110 01000 10000 11111",
    "3": "11110 00001 00001 01110 00001 00001 11110",
    "4": "00010 00110 01010 10010 11111 00010 00010",
    "5": "11111 10000 11110 00001 00001 10001 01110",
    "6": "00110 01000 10000 11110 10001 10001 01110",
    "7": "11111 00001 00010 00100 00100 01000 01000",
    "8": "01110 10001 10001 01110 10001 10001 01110",
    "9": "01110 10001 10001 01111 00001 00010 01100",
    "$": "00100 01111 10100 01110 00101 11110 00100",
}
"""Seven rows of five dots."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a picture shows: names of GARMENTS, COLOURS and PATTERNS, and what stands on the tag (digits and `$`)."""

    garment: str
    colour: str
    pattern: str
    tag: str


def draw_card(look: Look, draw: random.Random) -> Image.Image:
    """A card as SIDE x SIDE pixels of RGB. Background, shade, size and places are drawn; the look is not changed."""
    card = Image.new("RGB", (SIDE, SIDE), _near(draw.choice(_BACKGROUNDS), 8, draw))
    pen = ImageDraw.Draw(card)
    if draw.random() < 0.5:  # it lies on a table
        pen.rectangle((0, draw.randint(58, 74), SIDE, SIDE), fill=_near(draw.choice(_BACKGROUNDS), 8, draw))
    size = draw.randint(_SMALLEST, _LARGEST)
    left, top = draw.randint(8, SIDE - size - 8), draw.randint(2, 82 - size)
    card.paste(_cloth(look, draw, size), (left, top), _outline(look.garment, size))
    _hang_tag(card, look.tag, (5 + draw.randint(0, 3), 87 + draw.randint(0, 3)))
    return card


def _cloth(look: Look, draw: random.Random, size: int) -> Image.Image:
    """A square of the material; stripes are darker on light colours and lighter on dark ones."""
    base = _near(COLOURS[look.colour], 10, draw)
    cloth = Image.new("RGB", (size, size), base)
    pen = ImageDraw.Draw(cloth)
    toward = 255 if sum(base) < 380 else 0
    thread = tuple((2 * value + 3 * toward) // 5 for value in base)
    if look.pattern != "Plain":
        for start in range(draw.randrange(_STRIPE), size, _STRIPE):
            pen.rectangle((0, start, size, start + _THREAD - 1), fill=thread)
    if look.pattern == "Checked":
        for start in range(draw.randrange(_STRIPE), size, _STRIPE):
            pen.rectangle((start, 0, start + _THREAD - 1, size), fill=thread)
    return cloth


@cache
def _outline(garment: str, size: int) -> Image.Image:
    """Where a garment is, in a square of `size` pixels."""
    mask = Image.new("L", (size, size), 0)
    pen = ImageDraw.Draw(mask)
    for shape in _SHAPES[garment]:
        pen.polygon([(x * (size - 1), y * (size - 1)) for x, y in shape], fill=255)
    return mask


def _hang_tag(card: Image.Image, text: str, place: tuple[int, int]) -> None:
    """A white label with dark signs, as wide as its text; its corner is at `place`."""
    x, y = place
    width, height = len(text) * _ADVANCE + 6, 7 * _DOT + 6
    ImageDraw.Draw(card).rectangle((x, y, x + width, y + height), fill=(255, 255, 255), outline=(90, 90, 90))
    for number, sign in enumerate(text):
        card.paste((20, 20, 20), (x + 4 + number * _ADVANCE, y + 4), _glyph(sign))


@cache
def _glyph(sign: str) -> Image.Image:
    rows = _FONT[sign].split()
    small = Image.frombytes("L", (5, 7), bytes(255 * int(dot) for row in rows for dot in row))
    return small.resize((5 * _DOT, 7 * _DOT), Image.Resampling.NEAREST)


def _near(colour: Colour, spread: int, draw: random.Random) -> Colour:
    red, green, blue = (max(0, min(255, value + draw.randint(-spread, spread))) for value in colour)
    return red, green, blue
