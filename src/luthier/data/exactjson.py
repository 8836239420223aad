"""JSON to values without losing digits: orjson's reading, and a second one where that made floats of integers.

Knows numbers alone; refuses to know what a text of JSON is for. orjson turns an integer beyond 64 bits into a float
without a word, so 12345678901234567890121 would come back as another number. What orjson refuses (NaN, lone
surrogates, text nested too deeply) stays refused.
"""

from __future__ import annotations

import json
from typing import Any

import orjson

_LOWEST, _HIGHEST = -(2.0**63), 2.0**64
"""orjson keeps an integer from -2^63 to 2^64 - 1; a float that stands for any other lies at or beyond these."""


def loads(data: bytes | str) -> Any:
    """The value of a JSON text, every integer exact. Raises orjson.JSONDecodeError, which is a ValueError."""
    value = orjson.loads(data)
    return again(data) if may_be_inexact(value) else value


def may_be_inexact(value: Any) -> bool:
    """Whether a value that orjson read holds a float so large that its text may have been an integer.

    A walk over the values and not a search of the text for digits: long texts of few values then cost nothing.
    """
    waiting = [value]
    while waiting:
        item = waiting.pop()
        kind = type(item)
        if kind is dict:
            waiting.extend(item.values())
        elif kind is list:
            waiting.extend(item)
        elif kind is float and not _LOWEST < item < _HIGHEST:
            return True
    return False


def again(data: bytes | str) -> Any:
    """The second reading of a text that orjson has accepted. Raises orjson.JSONDecodeError where it is too deep."""
    text = data if isinstance(data, str) else data.decode()
    try:
        return json.loads(text)
    except RecursionError as error:
        raise orjson.JSONDecodeError("nested too deeply: recursion limit", text, 0) from error
