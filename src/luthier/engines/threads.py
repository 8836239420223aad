"""How many threads an answering model gets: those that this process may really use, one where the model is small.

Threads wait for one another at the end of every product. With as many of them as processors, beside other work, a
1B model fell from 7 to 0.4 tokens a second; with more than a container's share of the machine it is no better.
"""

from __future__ import annotations

import os
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_processors(quota: Path = _QUOTA) -> int:
    """Processors that this process may use: by its affinity, and by the share that its container (cgroup v2) grants.

    A share of 1.5 processors counts as one.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    found = len(affinity(0)) if affinity else os.cpu_count() or 1
    try:
        granted, period = quota.read_text(encoding="ascii").split()
    except OSError:
        return found
    return found if granted == "max" else max(1, min(found, int(granted) // int(period)))


def answering_threads(small: bool, asked: int = 0) -> int:
    """Threads for one model: as many as were asked for; else one for a small model; else what can be used, as far as
    OMP_NUM_THREADS allows."""
    if asked:
        return asked
    allowed = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    most = usable_processors()
    return 1 if small else min(most, int(allowed)) if allowed.isdigit() and int(allowed) else most
