"""Charts of a comparison: differences with their intervals, and curves of several runs over the step.

Like `charts`, this module takes numbers and gives SVG text; it refuses to know about records, files and pages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from luthier.outcome.charts import WIDTH, Frame, Point, nice_ticks, polyline, text, thin
from luthier.outcome.exams.charts import shorten

SERIES = 6
"""Colours of curves; more runs begin again with the first."""
LONGEST = 42
"""Letters of a name."""
_ROW = 34


@dataclass(frozen=True, slots=True)
class Difference:
    """One pair's difference with its interval; `apart`: it holds."""

    name: str
    value: float
    low: float
    high: float
    apart: bool


def difference_chart(title: str, rows: Sequence[Difference], axis: str) -> str:
    """A forest plot of differences around a line at 0. What holds is blue, what may be chance is grey."""
    if not rows:
        return ""
    desc = "; ".join(f"{row.name}: {row.value:+.4f} [{row.low:+.4f}, {row.high:+.4f}]" for row in rows)
    farthest = max(abs(end) for row in rows for end in (row.low, row.high))
    ticks = nice_ticks(-farthest, farthest)
    frame = Frame(title, desc, (ticks[0], ticks[-1]), (0, 1), height=_ROW * len(rows) + 66, left=16, right=16)
    foot = frame.height - frame.bottom
    body = [frame.x_axis(ticks, axis), f'<path class="ideal" d="M{frame.x(0):.1f} 8V{foot}"/>']
    for place, row in enumerate(rows):
        y, css = 30 + _ROW * place, "s1" if row.apart else "s0"
        body += [
            text(4, y - 10, shorten(row.name, LONGEST), css="ink"),
            text(WIDTH - 4, y - 10, f"{row.value:+.3f}", "end", "ink strong"),
            f'<path class="whisker {css}" d="M{frame.x(row.low):.1f} {y}H{frame.x(row.high):.1f}"/>',
            f'<circle class="{css}" cx="{frame.x(row.value):.1f}" cy="{y}" r="4"><title>{escape(row.name)} '
            f"{row.value:+.4f} [{row.low:+.4f}, {row.high:+.4f}]</title></circle>",
        ]
    return frame.svg(*body)


def curves_chart(title: str, series: Sequence[tuple[str, Sequence[Point]]], axes: tuple[str, str]) -> str:
    """A line for each run: (name, points of (x, y)), `axes` the names of x and y. Names stand below the curves."""
    drawn = [
        (name, [point for point in thin(points) if math.isfinite(point[1])], f"c{place % SERIES}")
        for place, (name, points) in enumerate(series)
    ]
    drawn = [one for one in drawn if one[1]]
    if not drawn:
        return ""
    values = [y for _, points, _ in drawn for _, y in points]
    x_ticks = nice_ticks(0, max(x for _, points, _ in drawn for x, _ in points))
    y_ticks = nice_ticks(min(values), max(values))
    desc = "; ".join(f"{name} from {points[0][1]:.3f} to {points[-1][1]:.3f}" for name, points, _ in drawn)
    names = 16 * len(drawn)
    frame = Frame(title, desc, (0, x_ticks[-1]), (y_ticks[0], y_ticks[-1]), height=270 + names, bottom=40 + names)
    base = frame.height - frame.bottom
    body = [frame.y_axis(y_ticks, axes[1])]
    body += [text(frame.x(tick), base + 14, f"{tick:g}", "middle") for tick in x_ticks]
    body.append(text(WIDTH / 2, base + 29, axes[0], "middle", "ink strong"))
    body += [polyline(frame, points, f"line {css}") for _, points, css in drawn]
    for place, (name, _, css) in enumerate(drawn):
        y = base + 44 + 16 * place
        body.append(f'<rect class="{css}" x="{frame.left}" y="{y - 9}" width="14" height="4" rx="2"/>')
        body.append(text(frame.left + 20, y - 3, shorten(name, LONGEST)))
    return frame.svg(*body)
