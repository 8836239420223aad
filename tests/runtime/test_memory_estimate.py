"""Whether a foretold amount of memory is there, and which keys would make it less."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from luthier.recipe import Recipe
from luthier.runtime.memory_estimate import MemoryEstimate, Part, fits

CPU = torch.device("cpu")


def recipe(**keys: Any) -> Recipe:
    made = Recipe()
    for key, value in keys.items():
        setattr(made.model if hasattr(made.model, key) else made.train, key, value)
    return made


WIDE = MemoryEstimate((Part("base weights", 100), Part("activations", 900), Part("process", 50)), here_already=50)
HEAVY = MemoryEstimate((Part("base weights", 900), Part("activations", 100)))
TRAINED = MemoryEstimate((Part("trained weights", 300), Part("optimizer", 600), Part("activations", 100)))


@pytest.mark.parametrize(
    ("found", "keys", "named", "not_named"),
    [
        (WIDE, {}, ["gradient_checkpointing: true", "micro_batch_tokens", "max_tokens"], ["quantization"]),
        (WIDE, {"gradient_checkpointing": True}, ["micro_batch_tokens"], ["gradient_checkpointing"]),
        (HEAVY, {}, ["model.quantization: nf4", "model.dtype: bfloat16"], ["micro_batch"]),
        (HEAVY, {"quantization": "nf4", "dtype": "bfloat16"}, ["model.base"], ["quantization", "dtype"]),
        (TRAINED, {}, ["model.lora.r"], ["tuning: lora"]),
        (TRAINED, {"tuning": "full"}, ["model.tuning: lora", "adamw_8bit"], ["quantization", "lora.r"]),
    ],
)
def test_a_recipe_that_cannot_fit_is_told_which_keys_would_help(
    found: MemoryEstimate, keys: dict[str, Any], named: list[str], not_named: list[str]
) -> None:
    made = recipe(**keys)
    (line,) = fits(found, made, CPU, free=600)
    assert all(name in line for name in named)
    assert not any(name in line for name in not_named)
    assert fits(found, made, CPU, free=found.needed) == []
