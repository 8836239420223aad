"""Which option is right, by the file's own way of counting: from 0, from 1, by letter or by the option's text.

Knows how a cell is read in each of these ways, and finds out from the whole file which of them it means; refuses to
guess: where two ways fit all items and name different options, both are shown and the exam is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from luthier.data.shapes.asked import LETTERS, NO_YES, Asked
from luthier.errors import DataError

MOST_WRONG = 0.05
"""The share of items that may be unusable."""
_LETTER = re.compile(r"\(?([A-Za-z])[).:]?")
_WHOLE_NUMBER = re.compile(r"[+-]?\d{1,9}(\.0)?")
_TRUTH = {"false": 0, "no": 0, "true": 1, "yes": 1}
_WORDS = {
    "0": "counted from 0",
    "1": "counted from 1",
    "letter": "read as a letter",
    "text": "read as an option's text",
}


@dataclass(frozen=True)
class Answers:
    """How a file counts (0, 1, letter or text), and the place of each item's right option; None: among none of them."""

    base: str
    places: list[int | None]


def is_missing(asked: Asked) -> bool:
    """Whether an item's answer is left out: nothing, blank, NaN, or the -1 of hidden test labels."""
    key = asked.key
    if key is None or (isinstance(key, float) and math.isnan(key)) or (isinstance(key, str) and not key.strip()):
        return True
    return _whole(key) == -1 and "-1" not in asked.options


def read_answers(asked: Sequence[Asked], origins: Sequence[str], said: str, where: str) -> Answers:
    """The answers of a file's items, all of one shape, none missing and with sound options.

    `said` is how the user says that they are counted, "" to find out. Raises DataError where that cannot be told, or
    where the values contradict a shape that always counts in one way.
    """
    found = {name: [read(one) for one in asked] for name, read in _READINGS.items()}
    if said:
        return Answers(said, found[said])
    wrong = {name: sum(place is None for place in places) for name, places in found.items()}
    # A way that fits every item beats one that only fits nearly all.
    fitting = [name for name in found if not wrong[name]]
    fitting = fitting or [name for name in found if wrong[name] <= MOST_WRONG * len(asked)]
    fixed = asked[0].base
    if fixed and fitting and fixed not in fitting:
        at = next(number for number, place in enumerate(found[fixed]) if place is None)
        raise DataError(
            f"{where}: files of the shape {asked[0].shape} count their answers from {fixed}, and this one contradicts "
            f"that. {origins[at]}: {_told(asked[at], fixed, None)}, and {_told_of(found, asked, at, fitting[0])}",
            f"say how this file counts: answers: {fitting[0]} in a recipe, --answers {fitting[0]} for luthier exam",
        )
    if fixed in fitting or (fixed and not fitting):
        return Answers(fixed, found[fixed])
    if "letter" in fitting and all(one.labels for one in asked):  # the record itself names its options
        return Answers("letter", found["letter"])
    if not fitting:
        best = min(found, key=lambda name: wrong[name])
        return Answers(best, found[best])
    first = fitting[0]
    for other in fitting[1:]:
        at = next(
            (n for n, places in enumerate(zip(found[first], found[other], strict=True)) if len({*places}) > 1), -1
        )
        if at >= 0:
            raise DataError(
                f"{where}: its answers can be read in two ways, and the whole file fits both. {origins[at]}: "
                f"{_told_of(found, asked, at, first)}, and {_told_of(found, asked, at, other)}",
                f"say how this file counts: answers: {first} or {other} in a recipe, --answers {first} or {other} for "
                "luthier exam",
            )
    return Answers(first, found[first])


def _told_of(found: dict[str, list[int | None]], asked: Sequence[Asked], at: int, name: str) -> str:
    return _told(asked[at], name, found[name][at])


def _told(one: Asked, name: str, place: int | None) -> str:
    means = "none of the options" if place is None else f"the option {one.options[place][:60]!r}"
    return f"{_WORDS[name]} the answer {str(one.key)[:60]!r} is {means}"


def _from_0(one: Asked) -> int | None:
    return _within(_number(one), one)


def _from_1(one: Asked) -> int | None:
    number = _number(one)
    return None if number is None else _within(number - 1, one)


def _letter(one: Asked) -> int | None:
    if not isinstance(one.key, str | int) or isinstance(one.key, bool):
        return None
    key = str(one.key).strip()
    if one.labels:
        return one.labels.index(key) if key in one.labels else None
    match = _LETTER.fullmatch(key)
    return _within(LETTERS.index(match[1].upper()), one) if match else None


def _text(one: Asked) -> int | None:
    spelled = (str(one.key).strip(), str(one.key).lower()) if isinstance(one.key, bool) else (str(one.key).strip(),)
    return next((one.options.index(text) for text in spelled if text in one.options), None)


_READINGS: dict[str, Callable[[Asked], int | None]] = {"0": _from_0, "1": _from_1, "letter": _letter, "text": _text}


def _within(place: int | None, one: Asked) -> int | None:
    return place if place is not None and 0 <= place < len(one.options) else None


def _number(one: Asked) -> int | None:
    if one.options == NO_YES and one.shape == "boolq":
        truth = _TRUTH.get(str(one.key).strip().lower())
        if truth is not None:
            return truth
    return _whole(one.key)


def _whole(key: object) -> int | None:
    """A whole number, however a table spells it: 1, 1.0, "1", "1.0"."""
    if isinstance(key, bool):
        return None
    if isinstance(key, int):
        return key
    if isinstance(key, float):
        return int(key) if key.is_integer() else None
    return int(float(key)) if isinstance(key, str) and _WHOLE_NUMBER.fullmatch(key.strip()) else None
