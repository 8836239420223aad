"""Memory in use: of the GPU where there is one, else of this process."""

from __future__ import annotations

import resource
from pathlib import Path

import torch


def used_memory(device: torch.device) -> int:
    """Bytes in use now."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    pages = int(Path("/proc/self/statm").read_text().split()[1]) if Path("/proc/self/statm").is_file() else 0
    return pages * resource.getpagesize()


def measured_peak(device: torch.device) -> int:
    """The most bytes that were in use since the process (or its GPU) began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
