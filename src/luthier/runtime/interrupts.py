"""SIGTERM and ctrl-C as a flag that work reads where it can be left: a step is finished and saved, never torn.

It knows no work by name.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_asked: list[int] = []
"""Signals that came since the outermost `stop_requested` began. A handler is the process's own: so is this."""


def _ask(number: int, _frame: FrameType | None) -> None:
    if _asked and number == signal.SIGINT:
        raise KeyboardInterrupt
    _asked.append(number)


def _stopping() -> bool:
    return bool(_asked)


@contextmanager
def stop_requested() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether a stop was asked for. A second ctrl-C interrupts at once.

    Blocks may be nested: the inner one sees what was asked of the outer one. Main thread only, as Python has it.
    """
    if signal.getsignal(signal.SIGTERM) is _ask:
        yield _stopping
        return
    _asked.clear()
    before = {number: signal.signal(number, _ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield _stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _asked.clear()
