"""How many threads a model on a processor is worth: on a small one they wait for one another longer than they work.

22 adapters of `toy:llama` with 162 questions took 4 s on one thread and 23 s on two beside another program.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

SMALL = 1_000_000
"""Weights beside the embedding below which a model is small: two layers of width 200."""


@contextmanager
def suited_threads(model: Any) -> Iterator[None]:
    """One thread while the block lasts, where a model of transformers is small and on a processor."""
    embedding = model.get_input_embeddings().weight
    weights = sum(parameter.numel() for parameter in model.parameters()) - embedding.numel()
    before = torch.get_num_threads()
    if embedding.device.type == "cpu" and weights < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
