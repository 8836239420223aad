"""How long a run will take here, from three steps of different size. Knows neither model nor rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_SIZES = (0.9, 0.5, 0.1)
"""Which forward passes are tried, as places in their order by size: a large one, a middling one, a small one."""


@dataclass(frozen=True)
class TimeEstimate:
    """Seconds, with the two that the slowest and the fastest of the steps tried would give."""

    seconds: float
    low: float
    high: float

    def line(self) -> str:
        """In words."""
        return f"about {_clock(self.seconds)} ({_clock(self.low)} to {_clock(self.high)})"


def probe(step: Callable[[int], int], passes: int) -> list[tuple[int, float]]:
    """Take three optimizer steps and return (tokens, seconds) of each.

    `step(i)` trains on forward pass i of `passes`, which are in order of their size, waits until the device has done
    it, and returns its tokens. A step before them warms up and is not counted. Putting the model back is the caller's.
    """
    chosen = [round(place * (passes - 1)) for place in _SIZES]
    step(chosen[-1])
    found = []
    for number in chosen:
        begin = time.perf_counter()
        tokens = step(number)
        found.append((tokens, time.perf_counter() - begin))
    return found


def time_estimate(probed: Sequence[tuple[int, float]], tokens: int) -> TimeEstimate:
    """What so many tokens will take: at the rate of all steps tried together, of the fastest, of the slowest.

    `probed` are (tokens, seconds), one step at least, none of them without tokens.
    """
    rates = [seconds / count for count, seconds in probed]
    together = sum(seconds for _, seconds in probed) / sum(count for count, _ in probed)
    return TimeEstimate(together * tokens, min(rates) * tokens, max(rates) * tokens)


def _clock(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
