"""Charts of exams with a row for each candidate: scores and differences with intervals, groups, preferred places.

Shares go in as fractions and are drawn in per cent. Like `charts`, this module takes numbers and gives SVG text; it
refuses to know about records, files and pages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from luthier.outcome.charts import (
    RIGHT,
    WIDTH,
    Frame,
    Point,
    legend,
    nice_ticks,
    text,
)

LETTER = 6.9
"""Width of a letter in units of the viewBox, of a wide font."""
WIDER = 4.8
"""By how much m and w are wider than that: two of them in a short name would be cut off at its start."""
BESIDE = 14
"""Letters of the longest name that stands beside its row; longer ones stand above it."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A share or a difference of shares with its interval; `css` is its colour, `note` stands at the right."""

    name: str
    value: float
    low: float
    high: float
    note: str = ""
    css: str = "s1"
    ring: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """A vertical line at a share that all rows are read against."""

    value: float
    name: str


@dataclass(frozen=True, slots=True)
class Rows:
    """Where the rows of a chart stand: names beside them, or above them where one is long.

    `notes` is the number of letters of the longest note, which stands at the right of the name or of the row.
    """

    names: Sequence[str]
    above: bool
    left: int
    right: int
    pitch: int
    top: int

    @classmethod
    def of(cls, names: Sequence[str], top: int, notes: int = 0) -> Rows:
        room = math.ceil(LETTER * notes)
        if max(map(len, names)) <= BESIDE:
            return cls(names, False, 12 + math.ceil(max(map(_width, names))), RIGHT + room, 20, top)
        most = int((WIDTH - 16 - room) / LETTER)
        return cls([shorten(name, most) for name in names], True, 12, RIGHT, 32, top)

    @property
    def foot(self) -> int:
        return self.top + self.pitch * len(self.names)

    def y(self, place: int) -> float:
        """The middle line of a row's drawing."""
        return self.top + self.pitch * place + (23 if self.above else 10)

    def label(self, place: int) -> str:
        x, y = (4.0, self.y(place) - 12) if self.above else (self.left - 8.0, self.y(place) + 4)
        return text(x, y, self.names[place], "start" if self.above else "end", "ink halo")

    def note(self, place: int, words: str) -> str:
        return text(WIDTH - 4, self.y(place) + (-12 if self.above else 4), words, "end", "ink halo")

    def frame(self, title: str, desc: str, x_range: Point) -> Frame:
        """Axes that hold these rows."""
        return Frame(title, desc, x_range, (0, 1), height=self.foot + 44, left=self.left, right=self.right)


def _width(name: str) -> float:
    """About how much room a name takes."""
    return LETTER * len(name) + WIDER * sum(letter in "mwMW" for letter in name)


def shorten(name: str, most: int) -> str:
    """A name with its middle cut out: models of one family differ at the beginning and at the end."""
    half = (most - 1) // 2
    return name if len(name) <= most else f"{name[:half]}…{name[-half:]}"


def beside(x: float, y: float, words: str, css: str = "ink") -> str:
    """Words right of a vertical line at `x`, or left of it where they would not fit; up to 25 letters always do."""
    fits = x + 4 + LETTER * len(words) <= WIDTH
    return text(x + 4, y, words, css=css) if fits else text(x - 4, y, words, "end", css)


def percent(value: float, digits: int = 1) -> str:
    """A share in per cent, without a sign."""
    return f"{100 * value:.{digits}f}"


def estimate_chart(title: str, rows: Sequence[Estimate], marks: Sequence[Mark], axis: str) -> str:
    """A forest plot: a point and its interval for each row, with lines that they are read against."""
    if not rows:
        return ""
    desc = "; ".join(
        f"{row.name}: {percent(row.value)} [{percent(row.low)}, {percent(row.high)}] {row.note}".rstrip()
        for row in rows
    )
    ends = [end for row in rows for end in (row.low, row.high)] + [mark.value for mark in marks]
    ticks = nice_ticks(100 * min(ends), 100 * max(ends))
    places = Rows.of([row.name for row in rows], 10 + 14 * len(marks), max(len(row.note) for row in rows))
    frame = places.frame(title, desc, (ticks[0], ticks[-1]))
    body = [frame.x_axis(ticks, axis), *_marks(frame, marks, places.foot)]
    for place, row in enumerate(rows):
        y, x = places.y(place), frame.x(100 * row.value)
        body += [
            places.label(place),
            places.note(place, row.note),
            f'<path class="whisker {row.css}" d="M{frame.x(100 * row.low):.1f} {y}H{frame.x(100 * row.high):.1f}"/>',
            f'<circle class="{row.css}" cx="{x:.1f}" cy="{y}" r="4"><title>{escape(row.name)} {percent(row.value)} '
            f"[{percent(row.low)}, {percent(row.high)}]</title></circle>",
            f'<circle class="ring" cx="{x:.1f}" cy="{y}" r="6.5"/>' if row.ring else "",
        ]
    return frame.svg(*body)


def _marks(frame: Frame, marks: Sequence[Mark], foot: float) -> list[str]:
    """Lines with their names above the rows, one below the other so that close ones stay legible."""
    found = []
    for place, mark in enumerate(marks):
        x, top = frame.x(100 * mark.value), 14 + 14 * place
        found.append(f'<path class="ideal" d="M{x:.1f} {top - 8}V{foot}"/>' + beside(x, top, mark.name))
    return found


def groups_chart(title: str, rows: Sequence[tuple[str, float, Sequence[str]]]) -> str:
    """Who cannot be told apart: (name, share, letters), a column a letter; a line joins those that share it.

    A compact letter display (Piepho 2004): two rows differ where no column has a dot in both.
    """
    if not rows:
        return ""
    ordered = sorted(rows, key=lambda row: -row[1])
    letters = sorted({letter for _, _, own in ordered for letter in own})
    desc = "; ".join(f"{name} {percent(share)}: {', '.join(own)}" for name, share, own in ordered)
    names = [shorten(name, 36) for name, _, _ in ordered]
    css, size = ("ink", 1.0) if max(map(len, names)) <= 2 * BESIDE else ("ink tiny", 0.88)
    left = 56 + math.ceil(size * max(map(_width, names)))
    pitch = min(34.0, (WIDTH - RIGHT - left) / max(1, len(letters)))
    line = [46 + 20 * place for place in range(len(ordered))]
    frame = Frame(title, desc, (0, 1), (0, 1), height=line[-1] + 22)
    body = [text(4, 12, "ordered by share right, %", css="ink strong")]
    for name, y, (_, share, _) in zip(names, line, ordered, strict=True):
        body += [text(4, y + 4, name, css=css), text(left - 14, y + 4, percent(share), "end")]
    for column, letter in enumerate(letters):
        x = left + pitch * (column + 0.5)
        own = [y for y, row in zip(line, ordered, strict=True) if letter in row[2]]
        body += [
            text(x, 30, letter, "middle", "ink strong"),
            f'<path class="line s1" d="M{x:.1f} {own[0]}V{own[-1]}"/>',
            *(f'<circle class="s1" cx="{x:.1f}" cy="{y}" r="4"/>' for y in own),
        ]
    return frame.svg(*body)


def place_chart(title: str, rows: Sequence[tuple[str, float, float]], even: float) -> str:
    """(name, share of choices of the option that stands first, share right in both orders); `even`: no preference."""
    if not rows:
        return ""
    desc = "; ".join(
        f"{name}: takes the first {percent(first)}, right in both orders {percent(both)}" for name, first, both in rows
    )
    places = Rows.of([name for name, _, _ in rows], 38)
    frame = places.frame(title, desc, (0, 100))
    x = frame.x(100 * even)
    body = [
        frame.x_axis((0, 25, 50, 75, 100), "% of questions"),
        legend([("s1", "takes the first"), ("s2", "right in both")]),
        f'<path class="ideal" d="M{x:.1f} 32V{places.foot}"/>',
        text(x, 28, "no preference", "middle"),
        *(places.label(place) for place in range(len(rows))),
    ]
    for place, (_, first, both) in enumerate(rows):
        for share, css, y in ((first, "s1", places.y(place) - 6.5), (both, "s2", places.y(place) + 0.5)):
            body.append(
                f'<rect class="{css}" x="{frame.left}" y="{y}" width="{frame.x(100 * share) - frame.left:.1f}" '
                f'height="6"><title>{percent(share)}</title></rect>'
            )
    return frame.svg(*body)
