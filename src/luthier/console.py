"""What a person sees: log lines and progress bars on standard error while work goes on, tables, and answers."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")
WIDTH = 100


def say(text: str) -> None:
    """One line of log."""
    print(text, file=sys.stderr, flush=True)


def tell(text: str) -> None:
    """What a verb was asked for, on standard output: it can be piped."""
    print(text, flush=True)


def progress(items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
    """Pass items through, with a bar that shows the time left once it has run for two seconds."""
    from tqdm import tqdm

    every = 0.5 if sys.stderr.isatty() else 15.0  # a log file gets a line now and then, not an animation
    yield from tqdm(
        items,
        desc=label,
        total=total,
        delay=2,
        ncols=WIDTH,
        file=sys.stderr,
        leave=False,
        mininterval=every,
        maxinterval=max(10.0, every),
    )


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A plain table of at most 100 columns; cells are cut in the widest column when it does not fit."""
    cells = [[str(cell) for cell in row] for row in [list(header), *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    excess = sum(widths) + 2 * (len(widths) - 1) - WIDTH
    if excess > 0:
        widest = widths.index(max(widths))
        widths[widest] = max(8, widths[widest] - excess)
        cells = [[c if len(c) <= widths[i] else c[: widths[i] - 1] + "…" for i, c in enumerate(row)] for row in cells]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    lines.insert(1, "  ".join("─" * width for width in widths))
    return "\n".join(lines)
