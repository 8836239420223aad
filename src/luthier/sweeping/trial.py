"""One trial of a sweep: a run in a child process that is watched, and stopped where it is no longer wanted.

A trial that crashes or is killed takes nothing with it: what became of it is a status and a reason. Knows processes
and their logs; refuses to know recipes and figures.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from luthier.sweeping.space import Settings

POLL_SECONDS = 0.25
GRACE_SECONDS = 300.0
"""How long a child that was told to stop may take to finish its step and save; then it is killed."""
DONE = ("finished", "pruned")
"""What a resumed sweep leaves alone."""


@dataclass
class Trial:
    """One run of a sweep. `status`: waiting, running, finished, pruned, failed or interrupted."""

    number: int
    name: str
    """Its folder under `trials/`."""
    settings: Settings
    status: str = "waiting"
    reason: str = ""
    seconds: float = 0.0
    """Wall time of its processes."""
    objective: float | None = None
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Figures of each stage: steps, train_loss, validation, validation_step, tokens_per_second."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Ended:
    """How a child ended. `code` is as subprocess gives it: below 0 is a signal."""

    code: int
    seconds: float
    pruned: bool
    said: str
    """What it printed last, for a reason."""


def watch(words: Sequence[str], log: Path, hopeless: Callable[[], bool], stopping: Event) -> Ended:
    """Run a child to its end, its output appended to `log`.

    It is told to stop (SIGTERM: it saves and ends) as soon as `hopeless()`, asked a few times a second, is true, or
    `stopping` is set. It has a session of its own, so that ctrl-C reaches it through us alone and once.
    """
    begun = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        start = stream.tell()
        child = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True)
        pruned = False
        try:
            while not stopping.is_set() and not pruned and child.poll() is None:
                time.sleep(POLL_SECONDS)
                pruned = child.poll() is None and hopeless()
        finally:
            code = _stopped(child)
    said = log.read_bytes()[start:].decode(errors="replace")
    return Ended(code, time.monotonic() - begun, pruned, said)


def _stopped(child: subprocess.Popen[bytes]) -> int:
    """Its exit code, once it has ended by itself or was told to."""
    if child.poll() is None:
        child.terminate()
    try:
        return child.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


def status_of(ended: Ended) -> tuple[str, str]:
    """(status, reason) of an ended child. One that finished before it heard that it was pruned has finished."""
    if ended.code == 0:
        return "finished", ""
    if ended.pruned:
        return "pruned", ""
    if ended.code in (130, -signal.SIGTERM, -signal.SIGINT):
        return "interrupted", ""
    if ended.code < 0:
        name = signal.Signals(-ended.code).name
        return "failed", f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return "failed", _reason(ended)


def _reason(ended: Ended) -> str:
    """The last message of the command line in its output, or its last line."""
    lines = [line.rstrip() for line in ended.said.splitlines() if line.strip()]
    said = [place for place, line in enumerate(lines) if line.startswith("luthier: ")]
    if said:
        return "\n".join(lines[said[-1] :]).removeprefix("luthier: ")[:1000]
    return f"exit code {ended.code}" + (f": {lines[-1][:300]}" if lines else "")
