"""A probability drawn on its scale from 0 to 1, with the mark and the zone of borderline answers. Knows no model."""

from __future__ import annotations

from luthier.engines.base import Zone

_ZONE, _LINE, _NUMBERS, _NAME, _HEIGHT = 14, 42, 72, 96, 104
_EDGE = 12.0
"""Percent of the width that a word's middle keeps from the edge, so that it is whole on a phone."""


def drawn_scale(p: float, zone: Zone | None, mark: float = 0.5) -> str:
    """An SVG as wide as its column, whose letters keep their size; `told_scale` is its text alternative.

    Places are percentages of the width: look.css gives it edges that dots and numbers may reach into.
    """
    shaded = ""
    if zone is not None:
        left, right = _percent(zone.low), _percent(zone.high)
        wide = max(right - left, 0.6)  # a zone of one value is still seen
        shaded = (
            f'<rect class="zone" x="{left:.2f}%" y="{_LINE - 16}" width="{wide:.2f}%" height="32"/>'
            f'<text class="zonename" x="{_held((left + right) / 2):.2f}%" y="{_ZONE}">borderline</text>'
        )
    ticks = "".join(
        f'<line class="tick" x1="{100 * at:g}%" x2="{100 * at:g}%" y1="{_LINE}" y2="{_LINE + 9}"/>'
        f'<text class="number" x="{100 * at:g}%" y="{_NUMBERS}">{at:g}</text>'
        for at in (0, 0.25, 0.5, 0.75, 1)
    )
    at, middle = _percent(p), _percent(mark)
    return (
        f'<svg class="scale" height="{_HEIGHT}" role="img" aria-label="{told_scale(p, zone, mark)}">{shaded}'
        f'<line class="rule" x1="0%" x2="100%" y1="{_LINE}" y2="{_LINE}"/>{ticks}'
        f'<line class="mark" x1="{middle:.2f}%" x2="{middle:.2f}%" y1="{_LINE - 16}" y2="{_LINE + 16}"/>'
        f'<circle class="place" cx="{at:.2f}%" cy="{_LINE}" r="9"/>'
        f'<text class="placename" x="{_held(at):.2f}%" y="{_NAME}">this answer {p:.3f}</text></svg>'
    )


def told_scale(p: float, zone: Zone | None, mark: float = 0.5) -> str:
    """The same in words."""
    side = "above" if p > mark else "not above"
    told = f"{p:.3f} on a scale from 0 to 1, {side} the mark at {mark:g}"
    if zone is None:
        return f"{told}; no zone of borderline answers is on record"
    return f"{told}, {'within' if zone.holds(p) else 'outside'} the zone of borderline answers ({told_zone(zone)})"


def told_zone(zone: Zone) -> str:
    """Where the zone lies, and what it is made of."""
    answers = "answer" if zone.n == 1 else "answers"
    return f"{zone.low:.3f} to {zone.high:.3f}, the middle 80 % of {zone.n} borderline held-out {answers}"


def _percent(p: float) -> float:
    return 100 * min(max(p, 0.0), 1.0)


def _held(percent: float) -> float:
    return min(max(percent, _EDGE), 100 - _EDGE)
