"""Charts as inline SVG text: lines, a reliability diagram, a strip plot, a histogram around the cut.

Every chart is one `<svg>` that scales with its viewBox, names itself with `<title>` and `<desc>` for screen
readers, and takes its colours from CSS classes (`s1`, `s2`, `ink`, `rule`), so light and dark come from the
page. This module refuses to know about runs, files or HTML pages: numbers go in, text comes out.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from luthier.outcome.figures import Bin

LARGEST = 1e12
WIDTH, LEFT, RIGHT, TOP, BOTTOM = 360, 38, 14, 34, 36
MAX_POINTS = 300
_GOLDEN = (math.sqrt(5) - 1) / 2
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Frame:
    """The axes of one chart. Ranges are in data units, the height and the margins in units of the viewBox."""

    title: str
    desc: str
    x_range: Point
    y_range: Point
    height: int = 270
    bottom: int = BOTTOM
    left: int = LEFT
    right: int = RIGHT
    top: int = TOP

    def x(self, value: float) -> float:
        """Horizontal place of a value."""
        low, high = self.x_range
        return self.left + (WIDTH - self.left - self.right) * (value - low) / (high - low)

    def y(self, value: float) -> float:
        """Vertical place of a value; larger is higher."""
        low, high = self.y_range
        return self.height - self.bottom - (self.height - self.top - self.bottom) * (value - low) / (high - low)

    def y_axis(self, ticks: Sequence[float], label: str) -> str:
        """Grid lines with their values, and the axis name above them, where it reads without turning."""
        lines = "".join(
            f'<path class="rule" d="M{self.left} {self.y(tick):.1f}H{WIDTH - self.right}"/>'
            + text(self.left - 5, self.y(tick) + 4, _short(tick), "end")
            for tick in ticks
        )
        return lines + text(4, 12, label, css="ink strong")

    def x_axis(self, ticks: Sequence[float], label: str) -> str:
        """Values under the base line and the axis name below them."""
        base = self.height - self.bottom
        values = "".join(text(self.x(tick), base + 14, _short(tick), "middle") for tick in ticks)
        return (
            f'<path class="axis" d="M{self.left} {base}H{WIDTH - self.right}"/>'
            + values
            + text((self.left + WIDTH - self.right) / 2, self.height - 5, label, "middle", "ink strong")
        )

    @property
    def name(self) -> str:
        """What the ids in this chart begin with; another chart of the page has another."""
        return "c" + hashlib.sha256(f"{self.title}{self.desc}".encode()).hexdigest()[:10]

    def svg(self, *body: str) -> str:
        """The whole chart."""
        name = self.name
        return (
            f'<svg class="chart" viewBox="0 0 {WIDTH} {self.height}" role="img" '
            f'aria-labelledby="{name}t {name}d"><title id="{name}t">{escape(self.title)}</title>'
            f'<desc id="{name}d">{escape(self.desc)}</desc>{"".join(body)}</svg>'
        )


def text(x: float, y: float, content: str, anchor: str = "start", css: str = "ink") -> str:
    """One escaped text element."""
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


def loss_chart(title: str, training: Sequence[Point], validation: Sequence[Point]) -> str:
    """Training loss (line) and validation log loss (dashed) over the step; points are (step, loss)."""
    # A diverged run is drawn at the limit instead of overflowing the axis; NaN has no place on it.
    training, validation = (
        [(step, max(-LARGEST, min(LARGEST, value))) for step, value in series if not math.isnan(value)]
        for series in (training, validation)
    )
    points = [*training, *validation]
    if not points:
        return ""
    thinned = thin(training)
    drawn = [value for _, value in [*thinned, *validation]]
    last = max(step for step, _ in points)
    y_ticks, x_ticks = nice_ticks(min(drawn), max(drawn)), nice_ticks(0, last)
    desc = "; ".join(
        f"{name} from {series[0][1]:.3f} at step {series[0][0]:g} to {series[-1][1]:.3f} "
        f"at step {series[-1][0]:g}, lowest {min(value for _, value in series):.3f}"
        for name, series in (("training loss", training), ("validation log loss", validation))
        if series
    )
    frame = Frame(title, desc, (0, x_ticks[-1]), (y_ticks[0], y_ticks[-1]))
    marks = "".join(
        f'<circle class="s2" cx="{frame.x(step):.1f}" cy="{frame.y(value):.1f}" r="3"/>' for step, value in validation
    )
    return frame.svg(
        frame.y_axis(y_ticks, "loss"),
        frame.x_axis(x_ticks, "optimizer step"),
        polyline(frame, thinned, "line s1"),
        polyline(frame, validation, "line dashed s2"),
        marks,
        legend(
            [
                (css, name)
                for css, name, series in (("s1", "training", training), ("s2", "validation", validation))
                if series
            ]
        ),
    )


def reliability_chart(
    title: str, series: Sequence[tuple[str, Sequence[Bin]]], observed: str = "observed pass rate"
) -> str:
    """What was observed against mean prediction with 95% Wilson intervals; counts stand along the base.

    `series` holds at most two (name, bins) pairs; the counts shown are those of the first. `observed` names the axis.
    """
    series = [(name, bins) for name, bins in series if bins]
    if not series:
        return ""
    desc = "; ".join(
        f"{name}: "
        + ", ".join(f"predicted {item.predicted:.2f}, observed {item.observed:.2f}, n {item.count}" for item in bins)
        for name, bins in series
    )
    frame = Frame(title, desc, (0, 1), (0, 1))
    quarters = (0, 0.25, 0.5, 0.75, 1)
    body = [
        frame.y_axis(quarters, observed),
        frame.x_axis(quarters, "predicted probability"),
        f'<path class="ideal" d="M{frame.x(0):.1f} {frame.y(0):.1f}L{frame.x(1):.1f} {frame.y(1):.1f}"/>',
    ]
    for place, (_, bins) in enumerate(series):
        css = f"s{place + 1}"
        body.append(
            polyline(frame, [(b.predicted, b.observed) for b in bins], f"line {css}" + (" dashed" if place else ""))
        )
        for item in bins:
            x, y = frame.x(item.predicted), frame.y(item.observed)
            whisker = f"M{x:.1f} {frame.y(item.low):.1f}V{frame.y(item.high):.1f}"
            body.append(
                f'<path class="whisker {css}" d="{whisker}"/>'
                f'<circle class="{css}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"><title>'
                f"predicted {item.predicted:.3f}, observed {item.observed:.3f} "
                f"[{item.low:.3f}, {item.high:.3f}], n = {item.count}</title></circle>"
            )
    counts = sorted({item.count for item in series[0][1]})
    label = f"{len(series[0][1])} bins, n = {' to '.join(map(str, sorted({counts[0], counts[-1]})))} each"
    body += [
        text(WIDTH - RIGHT - 4, frame.y(0) - 6, label, "end"),
        legend([(f"s{place + 1}", name) for place, (name, _) in enumerate(series)]),
    ]
    return frame.svg(*body)


def grade_chart(title: str, grades: Mapping[float, Sequence[float]]) -> str:
    """A column of jittered points for each grade (grade -> probabilities [n]), with its mean."""
    columns = [(grade, values) for grade, values in sorted(grades.items()) if len(values)]
    if not columns:
        return ""
    desc = "mean probability of a pass by grade: " + ", ".join(
        f"{grade:g}: {float(np.mean(values)):.2f} (n {len(values)})" for grade, values in columns
    )
    frame = Frame(title, desc, (-0.5, len(columns) - 0.5), (0, 1), height=280, bottom=46)
    band, base = (WIDTH - LEFT - RIGHT) / len(columns), frame.height - frame.bottom
    quarters = (0, 0.25, 0.5, 0.75, 1)
    body = [frame.y_axis(quarters, "probability of a pass"), frame.x_axis((), "grade, with count")]
    for place, (grade, values) in enumerate(columns):
        x, mean = frame.x(place), float(np.mean(values))
        # A low-discrepancy jitter spreads points evenly and draws the same picture from the same records.
        spread = [((index * _GOLDEN) % 1 - 0.5) * 0.62 * band for index in range(len(values))]
        body += [
            f'<circle class="point s1" cx="{x + shift:.1f}" cy="{frame.y(value):.1f}" r="2.2"/>'
            for value, shift in zip(values, spread, strict=True)
        ]
        body += [
            f'<path class="mean s2" d="M{x - 0.36 * band:.1f} {frame.y(mean):.1f}h{0.72 * band:.1f}"/>',
            text(x, TOP - 7, f"{mean:.2f}", "middle", "ink strong"),
            text(x, base + 14, f"{grade:g}", "middle"),
            text(x, base + 25, str(len(values)), "middle", "ink tiny"),
        ]
    return frame.svg(*body, text(WIDTH - RIGHT, 12, "figures above: means", "end"))


def borderline_chart(title: str, grades: Mapping[float, Sequence[float]], bins: int = 20) -> str:
    """For each grade near the cut a histogram of its probabilities (grade -> [n]), split at one half."""
    rows = [(grade, values) for grade, values in sorted(grades.items()) if len(values)]
    if not rows:
        return ""
    shares = [float(np.mean(np.asarray(values) >= 0.5)) for _, values in rows]
    desc = "; ".join(
        f"grade {grade:g}: {share:.0%} of {len(values)} at or above one half"
        for (grade, values), share in zip(rows, shares, strict=True)
    )
    panel = 112
    frame = Frame(title, desc, (0, 1), (0, 1), height=8 + panel * len(rows) + BOTTOM)
    body = [frame.x_axis((0, 0.25, 0.5, 0.75, 1), "probability of a pass")]
    for place, ((grade, values), share) in enumerate(zip(rows, shares, strict=True)):
        top, foot = 8 + panel * place, 8 + panel * (place + 1)
        counts, edges = np.histogram(values, bins=bins, range=(0, 1))
        scale, width = (panel - 32) / max(1, int(counts.max())), (WIDTH - LEFT - RIGHT) / bins - 1.4
        for count, edge in zip(counts.tolist(), edges.tolist(), strict=False):
            if count:
                body.append(
                    f'<rect class="{"s2" if edge >= 0.5 else "s1"}" x="{frame.x(edge) + 0.7:.1f}" '
                    f'y="{foot - count * scale:.1f}" width="{width:.1f}" '
                    f'height="{count * scale:.1f}"><title>{count} from {edge:.2f}</title></rect>'
                )
        body += [
            f'<path class="axis" d="M{LEFT} {foot}H{WIDTH - RIGHT}"/>',
            f'<path class="ideal" d="M{frame.x(0.5):.1f} {top + 24}V{foot}"/>',
            text(LEFT, top + 18, f"grade {grade:g}", css="ink strong"),
            text(WIDTH - RIGHT, top + 18, f"n = {len(values)}, {share:.0%} at or above ½", "end"),
        ]
    return frame.svg(*body)


def thin(points: Sequence[Point], most: int = MAX_POINTS) -> list[Point]:
    """At most `most` points: means of neighbours, so that a long run draws its level and not its noise."""
    if len(points) <= most:
        return list(points)
    return [
        (float(part[:, 0].mean()), float(part[:, 1].mean()))
        for part in np.array_split(np.asarray(points, dtype=float), most)
    ]


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten) that reach from at most `low` to at least `high`."""
    size = max(1.0, abs(low), abs(high))
    if high - low <= 1e-9 * size:
        low, high = low - size / 2, high + size / 2
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def polyline(frame: Frame, points: Sequence[Point], css: str) -> str:
    """A line through points in data units; empty for none."""
    path = " ".join(f"{frame.x(a):.1f},{frame.y(b):.1f}" for a, b in points)
    return f'<polyline class="{css}" points="{path}"/>' if points else ""


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """Swatches with names, right-aligned in the top line."""
    x, parts = float(WIDTH - RIGHT), []
    for css, name in reversed(entries):
        x -= 6.8 * len(name)
        parts.append(f'<rect class="{css}" x="{x - 13:.1f}" y="4" width="9" height="9" rx="2"/>' + text(x, 12, name))
        x -= 24
    return "".join(parts)


def _short(value: float) -> str:
    return f"{value:g}" if abs(value) < 10_000 else f"{value / 1000:g}k"
