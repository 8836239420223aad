"""What a person sees: log lines and progress bars on standard error while work goes on, tables, and answers."""

from __future__ import annotations

import resource
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")
WIDTH = 100
_REDRAW_SECONDS = 0.1
_LINE_SECONDS = 15.0  # a log file gets a line now and then, not an animation
_RATE_STEPS = 100


def say(text: str) -> None:
    """One line of log; a bar that is on the screen makes room for it."""
    if bars := sys.modules.get("tqdm"):
        bars.tqdm.write(text, file=sys.stderr)
    else:
        print(text, file=sys.stderr, flush=True)


def tell(text: str) -> None:
    """What a verb was asked for, on standard output: it can be piped."""
    print(text, flush=True)


def progress(items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
    """Pass items through, with a bar that shows the time left once it has run for two seconds."""
    from tqdm import tqdm

    every = 0.5 if sys.stderr.isatty() else _LINE_SECONDS
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


@contextmanager
def transfer_bar(total: int, label: str) -> Iterator[Callable[[int], None]]:
    """A function that is told of bytes as they go, with a bar over `total` once that has taken two seconds."""
    from tqdm import tqdm

    every = 0.5 if sys.stderr.isatty() else _LINE_SECONDS
    with tqdm(
        desc=label,
        total=total,
        unit="B",
        unit_scale=True,
        delay=2,
        ncols=WIDTH,
        file=sys.stderr,
        leave=False,
        mininterval=every,
    ) as bar:
        yield bar.update


@contextmanager
def training_bar(total: int, done: int = 0) -> Iterator[TrainingBar]:
    """The state of training in one line on standard error, while the block lasts.

    total: optimizer steps of the run. done: those of them that an earlier process took; rates leave them out.
    """
    bar = TrainingBar(total, done)
    try:
        yield bar
    finally:
        bar.close()


class TrainingBar:
    """Step, last known loss, tokens a second, time left and memory.

    Redrawn at most ten times a second on a terminal; elsewhere a plain line every 15 seconds, and one at the end.
    """

    def __init__(self, total: int, done: int = 0) -> None:
        self.total = total
        self.done = done
        self._tokens = 0
        self._loss: float | None = None
        self._memory: int | None = None
        self._drawn_at = time.monotonic()
        self._past = deque([(self._drawn_at, done, 0)], maxlen=_RATE_STEPS + 1)  # (seconds, steps, tokens)
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, file=sys.stderr, bar_format="{desc}", leave=True)
        self._every = _LINE_SECONDS if self._bar is None else _REDRAW_SECONDS

    def step(self, loss: float | None = None, tokens: int = 0, memory: int | None = None) -> None:
        """One optimizer step was taken.

        loss: only where it has been read from the device; the last one stays on show. tokens: those of this step.
        memory: bytes in use on the accelerator; where it is never given, the peak of this process is shown.
        """
        now = time.monotonic()
        self.done += 1
        self._tokens += tokens
        self._loss = self._loss if loss is None else loss
        self._memory = self._memory if memory is None else memory
        self._past.append((now, self.done, self._tokens))
        if now - self._drawn_at >= self._every:
            self._drawn_at = now
            self._draw()

    def close(self) -> None:
        """Leave the last state on show."""
        self._draw()
        if self._bar is not None:
            self._bar.close()

    def line(self) -> str:
        """What is on show. Rates are those of the last hundred steps."""
        (then, steps_then, tokens_then), (now, steps, tokens) = self._past[0], self._past[-1]
        seconds = now - then
        parts = [f"step {self.done}/{self.total} ({self.done / max(1, self.total):.0%})"]
        if self._loss is not None:
            parts.append(f"loss {self._loss:.4f}")
        if seconds > 0 and tokens > tokens_then:
            parts.append(f"{(tokens - tokens_then) / seconds:,.0f} tokens/s")
        if steps > steps_then:
            parts.append(f"left {_clock((self.total - self.done) * seconds / (steps - steps_then))}")
        parts.append(f"{(self._memory or _peak_bytes()) / 2**30:.2f} GiB")
        return "  ".join(parts)

    def _draw(self) -> None:
        if self._bar is None:
            say(self.line())
        else:  # a line that wraps could not be drawn over
            self._bar.set_description_str(self.line()[: shutil.get_terminal_size((WIDTH, 24)).columns - 1])


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


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
