"""SIGTERM and ctrl-C as a flag that work reads where it can be left: a step is finished and saved, never torn.

Preemption comes at any moment, so long work on the host (encoding, features, evaluation) looks at the same flag:
wrap its items in `until_stopped`, and hold one `stop_requested` around the whole run. It knows no work by name.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from luthier.errors import Interrupted

Item = TypeVar("Item")
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


def until_stopped(items: Iterable[Item], work: str, resume_line: str) -> Iterator[Item]:
    """Pass items on until a stop is asked for. Raises Interrupted before the next one."""
    for item in items:
        if _asked:
            raise Interrupted(f"stopped while {work}; what was finished before is kept", resume_line)
        yield item
