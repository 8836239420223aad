"""The map of an exam: who was wrong where, a row a candidate and a column an item, from the easiest to the hardest.

The cells are one small grey picture that masks a rectangle, so that their colour is the page's, and 3,137 questions of
22 candidates weigh a few kilobytes. Where there are more items than columns, a column is the mean of its neighbours.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from luthier.outcome.charts import WIDTH, text
from luthier.outcome.exams.charts import Rows

COLUMNS = 320
"""Columns at most: about as many as a chart has points on a phone."""


def item_map(title: str, names: Sequence[str], correct_KN: NDArray[np.bool_]) -> str:
    """Filled where a candidate is wrong. K candidates in the order given, N items; empty where either is none."""
    if not correct_KN.size:
        return ""
    places = Rows.of(names, 6)
    strip, foot = (16 if places.above else 18), places.foot
    desc = "; ".join(f"{name}: {int((~row).sum())} wrong" for name, row in zip(names, correct_KN, strict=True))
    frame = places.frame(title, f"{desc}, of {correct_KN.shape[1]}", (0, 1))
    wide, key = WIDTH - places.left - 4, frame.name
    area = f'x="{places.left}" y="{places.top}" width="{wide}" height="{foot - places.top}"'
    cells = "".join(
        f'<rect class="cell" x="{places.left}" y="{places.y(row) - strip / 2:.0f}" width="{wide}" height="{strip}"/>'
        for row in range(len(names))
    )
    # A row of the picture is a unit of the viewBox: no renderer blows it up and smears one strip into the next.
    picture = _picture(wrong_shares(correct_KN), places.pitch, strip, round(places.y(0) - strip / 2) - places.top)
    return frame.svg(
        *(places.label(row) for row in range(len(names))),
        f'<mask id="{key}m"><image {area} preserveAspectRatio="none" image-rendering="optimizeSpeed" '
        f'href="data:image/png;base64,{picture}"/></mask>{cells}<rect class="s2" {area} mask="url(#{key}m)"/>',
        text(places.left, foot + 16, "easiest"),
        text(WIDTH - 4, foot + 16, "hardest", "end"),
        text(places.left + wide / 2, foot + 36, "questions; filled: answered wrong", "middle", "ink strong"),
    )


def wrong_shares(correct_KN: NDArray[np.bool_], most: int = COLUMNS) -> NDArray[np.float64]:
    """Share of wrong answers of each candidate in each column, items ordered from the easiest to the hardest.

    Items that equally many have right are ordered by who has them right, so that what changes together stands together.
    """
    order = np.lexsort((*correct_KN[::-1], -correct_KN.sum(axis=0)))
    wrong_KN = (~correct_KN[:, order]).astype(np.float64)
    columns = np.array_split(wrong_KN, min(most, wrong_KN.shape[1]), axis=1)
    return np.stack([column.mean(axis=1) for column in columns], axis=1)


def _picture(wrong_KC: NDArray[np.float64], pitch: int, strip: int, above: int) -> str:
    """A grey PNG as base64, white where all is wrong: a row `pitch` pixels high, its strip below `above` empty ones."""
    grey_KC = np.round(255 * wrong_KC).astype(np.uint8)
    grey = np.zeros((len(grey_KC), pitch, grey_KC.shape[1]), dtype=np.uint8)
    grey[:, above : above + strip] = grey_KC[:, None]
    wide = np.repeat(grey.reshape(-1, grey.shape[2]), max(1, COLUMNS // grey.shape[2]), axis=1)
    target = io.BytesIO()
    Image.fromarray(wide).save(target, "PNG", optimize=True)
    return base64.b64encode(target.getvalue()).decode()
