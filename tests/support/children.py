"""The environment of child processes."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

Luthier = Callable[..., subprocess.CompletedProcess[str]]
"""The command line in a process of its own (a fixture)."""
ROOT = Path(__file__).parents[2]
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9", "OMP_NUM_THREADS": "1"}


def environment(**more: str) -> dict[str, str]:
    """A child's environment: offline, one thread, and this checkout's package."""
    kept = {name: value for name, value in os.environ.items() if name != "LUTHIER_DEBUG"}
    return {**kept, **OFFLINE, "PYTHONPATH": str(ROOT / "src"), **more}
