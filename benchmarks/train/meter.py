"""Takes down what one side's training cost, from inside its process: time a step, losses, memory, host reads.

Used alike by our side and the peers'; knows no library but torch.
"""

from __future__ import annotations

import json
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from reads import HostReads
from rows import Work

WARM = 1
"""Steps before the clock counts: the first one allocates, and where it compiles, compiles."""

FIRST_LOG = 1
"""A step after which loops look at the loss on purpose; host reads are counted from the next step's end on."""


@dataclass
class Meter:
    """One training's figures. `begin` before the first step, `step` after each, `report` at the end."""

    work: Work
    counted: bool
    """Count host reads, which spoils the times, and leave the losses where they are."""
    stamps: list[tuple[float, float]] = field(default_factory=list)
    """Wall and processor seconds at the start and after each step."""
    losses: list[torch.Tensor] = field(default_factory=list)
    loaded_mb: float = 0.0
    reads: HostReads = field(default_factory=HostReads)

    def begin(self) -> None:
        """Model and adapter are there, training has not begun."""
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        self.loaded_mb = pages * resource.getpagesize() / 1e6
        self.stamps.append((time.perf_counter(), time.process_time()))

    def step(self) -> None:
        """An optimizer step ended."""
        self.stamps.append((time.perf_counter(), time.process_time()))
        done = len(self.stamps) - 1
        if self.counted and done == FIRST_LOG + 1:
            self.reads.start()
        if self.counted and done == self.work.settings.steps:
            self.reads.stop()

    def report(self, more: dict[str, Any]) -> None:
        """One line of JSON. The loss of a step is the sum of what was noted for it."""
        tokens = self.work.tokens()
        if len(self.stamps) != len(tokens) + 1:
            raise RuntimeError(f"{len(self.stamps) - 1} steps were done, {len(tokens)} asked for")
        (wall_0, cpu_0), (wall_1, cpu_1) = self.stamps[WARM], self.stamps[-1]
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
        each = [b[0] - a[0] for a, b in zip(self.stamps, self.stamps[1:], strict=False)]
        found = {
            "tokens_per_s": sum(tokens[WARM:]) / (wall_1 - wall_0),
            "tokens_per_cpu_s": sum(tokens[WARM:]) / (cpu_1 - cpu_0),
            "seconds": [round(value, 4) for value in each],
            "peak_mb": peak_mb,
            "loaded_mb": self.loaded_mb,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            **more,
        }
        if self.counted:
            found["reads"] = self.reads.per_step(len(tokens) - FIRST_LOG - 1)
        else:
            found["losses"] = torch.stack(self.losses).double().reshape(len(tokens), -1).sum(1).tolist()
        print(f"\n{json.dumps(found)}")
