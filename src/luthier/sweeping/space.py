"""The settings of a sweep as words of the command line: a grid, seeds, or a space to search.

Knows how they are spelt; refuses to know recipes. `--grid KEY=V1,V2` lists values, `--search KEY=LOW..HIGH` is a range
(`:log` after it draws evenly over orders of magnitude), `--search KEY=A|B|C` a choice.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

_COMMA = re.compile(r",(?![^\[{]*[\]}])")
"""A comma that stands in no list or mapping."""
_RANGE = re.compile(r"(?P<low>[^.:|]\S*?)\.\.(?P<high>[^:|]+?)(?P<log>:log)?")
_WHOLE = re.compile(r"[+-]?\d+")


@dataclass(frozen=True)
class Choice:
    """A key and the values that it may take, as they would be written after `--set KEY=`."""

    key: str
    values: tuple[str, ...]

    @property
    def probes(self) -> tuple[str, ...]:
        """Values that must be right for all others to be."""
        return self.values

    def read(self, text: str) -> str:
        return text


@dataclass(frozen=True)
class Range:
    """A key and the bounds of its values, both included; `whole` numbers where both bounds are."""

    key: str
    low: float
    high: float
    log: bool
    whole: bool

    @property
    def probes(self) -> tuple[str, ...]:
        return (self.write(self.low), self.write(self.high))

    def read(self, text: str) -> float | int:
        return int(text) if self.whole else float(text)

    def write(self, value: float) -> str:
        """A value in full precision, so that `read` gives the same one."""
        return str(int(value)) if self.whole else repr(float(value))


Axis = Choice | Range
Kind = TypeVar("Kind", Choice, Axis)
Settings = dict[str, str]
"""Key -> value, as written after `--set`."""


def parse_grid(words: Sequence[str], seeds: str, problems: list[str]) -> list[Choice]:
    """The axes of `--grid` and `--seeds`; what is wrong is added to `problems`."""
    found = []
    for word in [*words, *([f"seed={seeds}"] if seeds else [])]:
        flag = f"--seeds {seeds}" if seeds and word == f"seed={seeds}" else f"--grid {word}"
        key, equals, text = word.partition("=")
        values = tuple(value.strip() for value in _COMMA.split(text))
        if not (key and equals) or not all(values):
            problems.append(f"{flag}: expected KEY=VALUE,VALUE such as train.learning_rate=1e-4,2e-4")
        else:
            found.append(Choice(key, values))
    return _once(found, problems)


def parse_search(words: Sequence[str], problems: list[str]) -> list[Axis]:
    """The axes of `--search`; what is wrong is added to `problems`."""
    found: list[Axis] = []
    for word in words:
        key, equals, text = word.partition("=")
        choices = tuple(value.strip() for value in text.split("|"))
        if key and equals and len(choices) > 1 and all(choices):
            found.append(Choice(key, choices))
        elif key and equals and (bounds := _RANGE.fullmatch(text)):
            found += _range(word, key, bounds, problems)
        else:
            problems.append(f"--search {word}: expected KEY=LOW..HIGH, KEY=LOW..HIGH:log or KEY=A|B|C")
    return _once(found, problems)


def _range(word: str, key: str, bounds: re.Match[str], problems: list[str]) -> list[Axis]:
    try:
        low, high = float(bounds["low"]), float(bounds["high"])
    except ValueError:
        problems.append(f"--search {word}: the bounds of a range are numbers")
        return []
    log = bool(bounds["log"])
    if not low < high or not math.isfinite(low) or not math.isfinite(high):
        problems.append(f"--search {word}: the lower bound must be below the upper one")
    elif log and low <= 0:
        problems.append(f"--search {word}: a range on a log scale begins above 0")
    else:
        whole = bool(_WHOLE.fullmatch(bounds["low"]) and _WHOLE.fullmatch(bounds["high"]))
        return [Range(key, low, high, log, whole)]
    return []


def _once(axes: Sequence[Kind], problems: list[str]) -> list[Kind]:
    keys = [axis.key for axis in axes]
    problems += [
        f"{key}: is varied twice (give all of its values at once)" for key in dict.fromkeys(keys) if keys.count(key) > 1
    ]
    return list(axes)


def product(axes: Sequence[Choice]) -> list[Settings]:
    """Every combination, the last axis fastest."""
    keys = [axis.key for axis in axes]
    return [dict(zip(keys, values, strict=True)) for values in itertools.product(*(axis.values for axis in axes))]


def corners(axes: Sequence[Axis]) -> list[Settings]:
    """Settings among which each probe of each axis occurs, the other axes at their first."""
    first = {axis.key: axis.probes[0] for axis in axes}
    found = [{**first, axis.key: probe} for axis in axes for probe in axis.probes]
    return [settings for place, settings in enumerate(found) if settings not in found[:place]]


def shown(value: str) -> str:
    """A value as a table shows it: long numbers with three digits."""
    try:
        return value if len(value) <= 8 else f"{float(value):.3g}"
    except ValueError:
        return value


def folder_name(number: int, settings: Settings) -> str:
    """Such as 003-learning_rate-2e-4_r-16."""
    words = "_".join(f"{key.rpartition('.')[2]}-{shown(value)}" for key, value in settings.items())
    return f"{number:03d}-{re.sub(r'[^A-Za-z0-9._-]+', '-', words)[:60]}".rstrip("-_.")
