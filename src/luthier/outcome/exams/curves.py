"""Charts of exams over a quantity: accuracy over the step, over what it cost, and what more questions would show.

Shares go in as fractions and are drawn in per cent. This module takes numbers and gives SVG text; it refuses to know
about records, files and pages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from luthier.outcome.charts import RIGHT, WIDTH, Frame, Point, legend, nice_ticks, polyline, text
from luthier.outcome.exams.charts import LETTER, Estimate, beside, percent, shorten

QUESTION_TICKS = (50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Curve:
    """Accuracy over the step. `points` are (step, share), `band` their simultaneous interval, in the same order.

    `base` is the share of the base, `picked` and `best` are steps, and `word` says what the picked one is. `corrected`
    is the share of the best after the correction for being the best, with its interval.
    """

    points: Sequence[Point]
    band: Sequence[Point]
    base: float | None = None
    picked: float | None = None
    word: str = "chosen"
    best: float | None = None
    corrected: tuple[float, float, float] | None = None


def curve_chart(title: str, curve: Curve) -> str:
    """Accuracy over the step: simultaneous band, the base's line, the chosen and the best checkpoint."""
    if not curve.points:
        return ""
    drawn = [100 * share for pair in curve.band for share in pair] + [100 * share for _, share in curve.points]
    drawn += [100 * curve.base] if curve.base is not None else []
    drawn += [100 * share for share in curve.corrected or ()]
    y_ticks, x_ticks = nice_ticks(min(drawn), max(drawn)), nice_ticks(0, curve.points[-1][0], 6)
    desc = "; ".join(f"step {step:g}: {percent(share)}" for step, share in curve.points)
    frame = Frame(title, desc, (0, x_ticks[-1]), (y_ticks[0], y_ticks[-1]), height=310, top=54)
    shares = [(step, 100 * share) for step, share in curve.points]
    entries = [("s1", "checkpoints")]
    body = [frame.y_axis(y_ticks, "right, %"), frame.x_axis(x_ticks, "optimizer step"), _band(frame, curve)]
    if curve.base is not None:
        body.append(f'<path class="line dashed s0" d="M{frame.left} {frame.y(100 * curve.base):.1f}H{WIDTH - RIGHT}"/>')
        entries.insert(0, ("s0", "base"))
    body.append(polyline(frame, shares, "line s1"))
    body += [f'<circle class="s1" cx="{frame.x(a):.1f}" cy="{frame.y(b):.1f}" r="3"/>' for a, b in shares]
    if curve.corrected and curve.best is not None:
        value, low, high = (frame.y(100 * share) for share in curve.corrected)
        x = frame.x(curve.best) + (7 if curve.best < x_ticks[-1] else -7)
        body.append(f'<path class="whisker s2" d="M{x:.1f} {low:.1f}V{high:.1f}"/>')
        body.append(f'<circle class="s2" cx="{x:.1f}" cy="{value:.1f}" r="3.5"/>')
        entries.append(("s2", "corrected"))
    return frame.svg(*body, *_picks(frame, curve), legend(entries))


def _band(frame: Frame, curve: Curve) -> str:
    if len(curve.band) != len(curve.points):
        return ""
    steps = [frame.x(step) for step, _ in curve.points]
    lows, highs = ([frame.y(100 * pair[side]) for pair in curve.band] for side in (0, 1))
    there = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(steps, highs, strict=True))
    back = " ".join(f"{x:.1f},{y:.1f}" for x, y in reversed(list(zip(steps, lows, strict=True))))
    return f'<polygon class="band" points="{there} {back}"/>'


def _picks(frame: Frame, curve: Curve) -> list[str]:
    """Names of the picked and the best checkpoint, each in a line of its own above the plot."""
    shares, found = dict(curve.points), []
    same = curve.picked == curve.best
    both = "best" if curve.word == "best" else f"{curve.word}, best"
    for step, name, row in ((curve.picked, both if same else curve.word, 30), (curve.best, "best", 44)):
        if step is None or step not in shares or (same and row == 44):
            continue
        x, y = frame.x(step), frame.y(100 * shares[step])
        found += [
            f'<path class="mark" d="M{x:.1f} {row - 9}V{y - 7:.1f}"/>',
            f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="6.5"/>',
            beside(x, row, f"{name}: step {step:g}", "ink strong"),
        ]
    return found


def cost_chart(title: str, points: Sequence[tuple[Estimate, float]], axis: str) -> str:
    """Share right over what it cost (a number of any unit, named by `axis`); names where there is room for them."""
    if not points:
        return ""
    desc = "; ".join(f"{row.name}: {percent(row.value)} at {cost:g}" for row, cost in points)
    ends = [100 * end for row, _ in points for end in (row.low, row.high)]
    y_ticks, x_ticks = nice_ticks(min(ends), max(ends)), nice_ticks(0, max(cost for _, cost in points) or 1.0)
    frame = Frame(title, desc, (0, x_ticks[-1]), (y_ticks[0], y_ticks[-1]))
    body = [frame.y_axis(y_ticks, "right, %"), frame.x_axis(x_ticks, axis)]
    taken: list[Box] = []
    for row, cost in points:
        x, y = frame.x(cost), frame.y(100 * row.value)
        taken.append((x - 6, y - 6, x + 6, y + 6))
        body += [
            f'<path class="whisker {row.css}" d="M{x:.1f} {frame.y(100 * row.low):.1f}'
            f'V{frame.y(100 * row.high):.1f}"/>'
            f'<circle class="{row.css}" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{escape(row.name)}</title></circle>',
            f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="6.5"/>' if row.ring else "",
        ]
    # Those that a reader looks for first are named first.
    for row, cost in sorted(points, key=lambda point: (not point[0].ring, -point[0].value)):
        body.append(_place_name(shorten(row.name, 24), (frame.x(cost), frame.y(100 * row.value)), taken))
    return frame.svg(*body)


def _place_name(name: str, at: Point, taken: list[Box]) -> str:
    """The name right, left, above or below of a point, at the first place that is free; else not at all."""
    wide, (x, y) = LETTER * len(name), at
    for left, middle in ((x + 9, y), (x - 9 - wide, y), (x - wide / 2, y - 15), (x - wide / 2, y + 15)):
        box = (left, middle - 7, left + wide, middle + 7)
        inside = left > 2 and box[2] < WIDTH - 2
        if inside and all(box[0] > b[2] or box[2] < b[0] or box[1] > b[3] or box[3] < b[1] for b in taken):
            taken.append(box)
            return text(left, middle + 4, name, css="ink tiny halo")
    return ""


def power_chart(title: str, gaps: Sequence[Point], here: tuple[int, float], never: float) -> str:
    """The smallest true gap that is found in four of five tries, over the number of questions (log scale).

    `gaps` are (questions, gap), `here` is this exam's; `never`: no gap below it is ever significant here.
    """
    if not gaps:
        return ""
    count, gap = here
    desc = f"{count} questions find a gap of {percent(gap)} points; no gap below {percent(never)} is ever significant"
    y_ticks = nice_ticks(0, 100 * max(value for _, value in gaps))
    low, high = math.log10(gaps[0][0]), math.log10(gaps[-1][0])
    frame = Frame(title, desc, (low, high), (0, y_ticks[-1]), top=44)
    base, x, y = frame.height - frame.bottom, frame.x(math.log10(count)), frame.y(100 * gap)
    ticks = [tick for tick in QUESTION_TICKS if 10**low <= tick <= 10**high]
    return frame.svg(
        frame.y_axis(y_ticks, "smallest gap found in four of five tries, points"),
        frame.x_axis((), "questions"),
        *(
            text(frame.x(math.log10(tick)), base + 14, _grouped(tick), "middle")
            for place, tick in enumerate(ticks)
            if place % 2 == len(ticks) % 2
        ),
        polyline(frame, [(math.log10(a), 100 * b) for a, b in gaps], "line s1"),
        f'<path class="mark" d="M{x:.1f} {base}V{y:.1f}"/>',
        f'<circle class="s2" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>',
        # The curve falls, so that its upper right corner is free.
        text(WIDTH - RIGHT, frame.top + 18, f"{_grouped(count)} questions: {percent(gap)} points", "end", "ink strong"),
        text(WIDTH - RIGHT, frame.top + 34, f"below {percent(never)}: never significant", "end"),
    )


def _grouped(count: int) -> str:
    return f"{count:,}".replace(",", "\u202f")
