"""How many threads a model on a processor is worth: on a small one they wait for one another longer than they work.

22 adapters of `toy:llama` with 162 questions took 4 s on one thread and 23 s on two beside another program.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

SMALL = 1_000_000
"""Weights beside the embedding below which a model is small: two layers of width 200."""


@contextmanager
def some_threads(count: int) -> Iterator[None]:
    """So many threads while the block lasts; then as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_thread() -> AbstractContextManager[None]:
    """One thread while the block lasts; then as many as before."""
    return some_threads(1)


def is_small(model: Any) -> bool:
    """Whether a model of transformers is on a processor, and so small that one thread is the fastest."""
    embedding = model.get_input_embeddings().weight
    weights = sum(parameter.numel() for parameter in model.parameters()) - embedding.numel()
    return bool(embedding.device.type == "cpu" and weights < SMALL)


def suited_threads(model: Any) -> AbstractContextManager[None]:
    """A block of one thread for a model that is small and on a processor; for others any block."""
    return one_thread() if is_small(model) else nullcontext()
