"""What a command costs, counted by the kernel for a child process: CPU-seconds, wall time and peak memory.

Knows processes; refuses to know what they do. Light on purpose: a child's peak memory is never below what its
parent held when it was started, so the parent loads nothing large.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Spent:
    """One command's costs; those of its own children, once they ended, are in the seconds too."""

    cpu_s: float
    wall_s: float
    peak_mb: float
    """The largest resident memory of one process, file pages that it mapped included."""
    said: dict[str, Any]
    """The last line of its standard output that is a JSON object."""


class Failed(RuntimeError):
    """A measured command that did not end well; the message holds the end of what it wrote."""


def spent(command: Sequence[str], more: Mapping[str, str] | None = None) -> Spent:
    """Run a command to its end and count. One thread for each library that counts them by a variable."""
    single = dict.fromkeys(("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"), "1")
    environment = {**os.environ, **single, "TOKENIZERS_PARALLELISM": "false", **(more or {})}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        begun = time.perf_counter()
        child = subprocess.Popen(list(command), stdout=out, stderr=err, env=environment)
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - begun
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        text = out.read().decode(errors="replace")
        if child.returncode:
            tail = err.read().decode(errors="replace")[-2_000:]
            raise Failed(f"{' '.join(command)} ended with {child.returncode}:\n{text[-500:]}\n{tail}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Spent(usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss * unit / 1e6, _last_object(text))


def _last_object(text: str) -> dict[str, Any]:
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            found: dict[str, Any] = json.loads(line)
            return found
    return {}
