"""Memory in use, the most that was, and what is free: of the GPU where there is one, else of this process.

Knows no model and no recipe.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from pathlib import Path

import torch

_MMAP_THRESHOLD = -3
"""M_MMAP_THRESHOLD of glibc's malloc.h."""
_CGROUPS = (  # version 2, version 1: the limit, what is used, and the file of counters
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)


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
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage's figure would include what the parent held when it started this process
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had: of the GPU, of the container where it has a limit, or of the machine."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    return min(_machine(), *(_room_of(*(Path(path) for path in paths)) for paths in _CGROUPS))


def return_freed_memory() -> bool:
    """Have malloc hand every large block back when it is freed. Returns whether the C library does so (glibc).

    By itself glibc learns to keep blocks of up to 32 MiB, and a training's blocks, of many sizes, then leave holes:
    the same steps took 1.3 to 2.5 times the memory that their tensors need. Handing blocks back costs the kernel's
    zeroing of new pages: 10 to 15 % more processor time on a 20 M-parameter model.
    """
    try:
        return bool(ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 2**16))
    except (OSError, AttributeError, TypeError):  # another C library
        return False


def _machine() -> int:
    """What Linux says is available; elsewhere all that the machine has."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        return next(int(line.split()[1]) for line in meminfo.read_text().splitlines() if "MemAvailable" in line) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _room_of(limit: Path, used: Path, counters: Path) -> int:
    """Bytes below a container's limit; file pages that can be dropped count as free. `sys.maxsize`: no limit."""
    try:
        most = limit.read_text().strip()
        if most == "max":
            return sys.maxsize
        droppable = next(
            (int(line.split()[1]) for line in counters.read_text().splitlines() if "inactive_file" in line), 0
        )
        return max(0, int(most) - int(used.read_text()) + droppable)
    except OSError:  # not in such a container
        return sys.maxsize
