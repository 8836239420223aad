"""How far amounts are off, as a chart. Numbers go in, SVG text comes out; nothing is known of runs and pages."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from luthier.outcome.charts import WIDTH, Frame, nice_ticks, text

LIMIT = 3
"""Powers of two that are drawn either way; what is farther off lies in the last bars."""
_BINS = 6
"""Bars to a factor of two."""


def ratio_chart(title: str, ratios: Sequence[float], near: float = 0.10) -> str:
    """A histogram of answer / truth on a scale of factors; the band is within `near` of the truth. "" for none."""
    if not ratios:
        return ""
    edges = (np.arange(2 * LIMIT * _BINS + 2) - 0.5) / _BINS - LIMIT  # a bar lies around the truth
    logs = np.clip(np.log2(np.asarray(ratios, dtype=np.float64)), edges[0], edges[-1])
    counts = np.histogram(logs, bins=edges)[0].tolist()
    within = sum(abs(ratio - 1) <= near for ratio in ratios)
    middle = 2 ** float(np.median(logs))
    desc = (
        f"{within} of {len(ratios)} within {near:.0%} of the truth; half of the answers are at least {middle:.2f} times"
    )
    ticks = nice_ticks(0, max(counts))
    frame = Frame(title, desc, (float(edges[0]), float(edges[-1])), (0, ticks[-1]))
    base = frame.height - frame.bottom
    low, high = (frame.x(math.log2(1 + side * near)) for side in (-1, 1))
    body = [
        f'<rect class="band" x="{low:.1f}" y="{frame.top}" width="{high - low:.1f}" height="{base - frame.top}"/>',
        frame.y_axis(ticks, "pictures"),
        frame.x_axis((), "answer / truth"),
    ]
    for power in range(-LIMIT, LIMIT + 1):
        body.append(text(frame.x(power), base + 14, f"÷ {2**-power}" if power < 0 else f"× {2**power}", "middle"))
    for count, left, right in zip(counts, edges, edges[1:], strict=False):
        if count:
            x, top = frame.x(float(left)) + 0.5, frame.y(count)
            body.append(
                f'<rect class="s1" x="{x:.1f}" y="{top:.1f}" width="{frame.x(float(right)) - x - 0.5:.1f}" '
                f'height="{base - top:.1f}"><title>{count} from {2 ** float(left):.2f} to {2 ** float(right):.2f} '
                "times the truth</title></rect>"
            )
    body.append(f'<path class="ideal" d="M{frame.x(0):.1f} {frame.top}V{base}"/>')
    return frame.svg(*body, text(WIDTH - frame.right, 12, f"n = {len(ratios)}, {within} in the band", "end"))
