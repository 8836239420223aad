"""Figures of the report: what a record's number is, how it prints, and the bins of a reliability diagram.

A number that is missing, NaN or infinite prints as a dash. This module refuses to know about files and pages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.outcome.statistics.intervals import wilson


@dataclass(frozen=True, slots=True)
class Bin:
    """One bin of a reliability diagram: mean prediction, observed pass rate with its interval, and count."""

    predicted: float
    observed: float
    low: float
    high: float
    count: int


def equal_mass_bins(probabilities: Sequence[float], outcomes: Sequence[bool], most: int = 10) -> list[Bin]:
    """Bins of equal counts along the sorted predictions, 10 items or more in each. Both inputs are [n].

    Equal counts, because equal widths leave bins with two items that read as miscalibration.
    """
    count = len(probabilities)
    if count != len(outcomes):
        raise ValueError(f"{count} probabilities and {len(outcomes)} outcomes")
    if not count:
        return []
    order = np.argsort(np.asarray(probabilities, dtype=float), kind="stable")
    bins = []
    for part in np.array_split(order, max(1, min(most, count // 10))):
        passed = sum(bool(outcomes[i]) for i in part)
        low, high = wilson(passed, len(part))
        mean = float(np.mean([probabilities[i] for i in part]))
        bins.append(Bin(mean, passed / len(part), low, high, len(part)))
    return bins


def finite(value: object) -> bool:
    """Whether a record holds a number that can be drawn or printed."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def score(value: Any) -> dict[str, Any]:
    """A figure as `{"value", "low", "high", "n"}`, empty for none; a plain number has no interval."""
    found = value if isinstance(value, dict) else {"value": value}
    if not finite(found.get("value")):
        return {}
    ci = found.get("ci")
    if not isinstance(ci, (list, tuple)) or len(ci) != 2 or not all(map(finite, ci)):
        ci = (None, None)
    low, high = ci
    return {"value": found["value"], "low": low, "high": high, "n": found.get("n")}


def interval(figure: dict[str, Any]) -> str:
    """` [low, high]` for a sentence; empty without an interval."""
    return "" if figure["low"] is None else f" [{figure['low']:.3f}, {figure['high']:.3f}]"


def number(value: Any, digits: int = 3) -> str:
    """A figure with fixed digits, or a dash."""
    return f"{value:.{digits}f}" if finite(value) else "–"


def percent(value: Any, digits: int = 1) -> str:
    """A share as people write it, 76.5%, or a dash."""
    return f"{100 * value:.{digits}f}%" if finite(value) else "–"


def count(value: Any) -> str:
    """A whole number in groups of three, or a dash."""
    return f"{value:,.0f}".replace(",", "\u202f") if finite(value) else "–"


def duration(value: Any) -> str:
    """Seconds in the two largest units, or a dash."""
    if not finite(value):
        return "–"
    minutes, seconds = divmod(float(value), 60)
    if minutes < 1:
        return f"{seconds:.1f} s"
    if minutes < 60:
        return f"{minutes:.0f} min {seconds:.0f} s"
    return f"{minutes // 60:.0f} h {minutes % 60:.0f} min"
