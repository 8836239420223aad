"""A bench for checkpoints, in memory where there is a place for it."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from support.faultbench import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """In memory an fsync costs nothing, and only its place in the order is tested."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a forked child has none of its parent's threads, and must not wait for them
    shared = Path("/dev/shm")
    place = shared / f"luthier-{os.getpid()}" if os.access(shared, os.W_OK) else tmp_path / "bench"
    place.mkdir()
    yield Bench(place)
    shutil.rmtree(place)
    torch.set_num_threads(threads)
