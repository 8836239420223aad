"""The curves of a stage while it trains: lines appended to metrics.jsonl are read once each, and drawn.

Refuses to know runs, pages and who looks. A file that was cut back, as resuming does, is read anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from luthier.outcome.charts import Frame, Point, loss_chart, nice_ticks, polyline, thin
from luthier.outcome.figures import finite

_VALIDATION = ("validation_log_loss", "validation_loss")
_MOST_BYTES = 64 * 2**20
"""Read in one go; a line of metrics has some 200."""


@dataclass
class LiveFigures:
    """What a metrics.jsonl has said so far; may be asked from any thread.

    Points are (optimizer step, value); the speed is in tokens per second, between one line and the next.
    """

    path: Path
    last: dict[str, Any] = field(default_factory=dict)
    """The newest line."""
    loss: list[Point] = field(default_factory=list)
    validation: list[Point] = field(default_factory=list)
    learning_rate: list[Point] = field(default_factory=list)
    speed: list[Point] = field(default_factory=list)
    read_bytes: int = 0
    """Of the file as it is now: those that need not be read again."""
    _lock: Lock = field(default_factory=Lock, repr=False)
    _inode: int = 0

    def read(self) -> bool:
        """Take in the lines that are new; whether there were any. A line that is still being written waits."""
        with self._lock:
            try:
                stream = self.path.open("rb")
            except FileNotFoundError:
                return False
            with stream:
                file = os.fstat(stream.fileno())
                if file.st_size < self.read_bytes or file.st_ino != self._inode:
                    self._forget(file.st_ino)
                stream.seek(self.read_bytes)
                whole, newline, _ = stream.read(_MOST_BYTES).rpartition(b"\n")
            self.read_bytes += len(whole) + len(newline)
            for line in whole.split(b"\n"):
                self._take(line)
            return bool(whole)

    def charts(self) -> list[str]:
        """Loss, learning rate and speed as SVG, as far as there is anything to draw."""
        with self._lock:
            drawn = [loss_chart("Loss", self.loss, self.validation)]
            for name, points in (("learning rate", self.learning_rate), ("tokens per second", self.speed)):
                drawn.append(_curve(name, points))
        return [chart for chart in drawn if chart]

    def _forget(self, inode: int) -> None:
        self._inode, self.read_bytes, self.last = inode, 0, {}
        for points in (self.loss, self.validation, self.learning_rate, self.speed):
            points.clear()

    def _take(self, line: bytes) -> None:
        try:
            row = json.loads(line)
        except ValueError:  # a line torn by a crash, after which others were appended: its figures are lost
            return
        if not isinstance(row, dict) or not finite(row.get("step")):
            return
        step = float(row["step"])
        for points, names in (
            (self.loss, ("loss",)),
            (self.validation, _VALIDATION),
            (self.learning_rate, ("learning_rate",)),
        ):
            points += [(step, float(row[name])) for name in names if finite(row.get(name))]
        gone, done = (_less(row, self.last, name) for name in ("seconds", "tokens"))
        if gone > 0 and done > 0:
            self.speed.append((step, done / gone))
        self.last = row


def _curve(name: str, points: Sequence[Point]) -> str:
    """One curve over the step, on an axis that begins at 0; empty for no points."""
    if not points:
        return ""
    thinned = thin(points)
    x_ticks, y_ticks = nice_ticks(0, points[-1][0]), nice_ticks(0, max(value for _, value in thinned))
    desc = f"{name} from {points[0][1]:.4g} at step {points[0][0]:g} to {points[-1][1]:.4g} at step {points[-1][0]:g}"
    frame = Frame(name.capitalize(), desc, (0, x_ticks[-1]), (0, y_ticks[-1]), left=46)
    axes = frame.y_axis(y_ticks, name), frame.x_axis(x_ticks, "optimizer step")
    return frame.svg(*axes, polyline(frame, thinned, "line s1"))


def _less(new: dict[str, Any], old: dict[str, Any], name: str) -> float:
    """How much a counter grew; 0 where it is not there."""
    if not finite(new.get(name)):
        return 0.0
    return float(new[name]) - (float(old[name]) if finite(old.get(name)) else 0.0)
