"""Model folders for tests of GGUF: toys with a changed configuration, and what transformers says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from luthier.models.toys import TOYS, _decoder, build_sized

Ids = list[int]


def model_folder(folder: Path, name: str, tokenizer: Any = None, **changes: Any) -> Path:
    """A toy of the family `name` with `changes` to its configuration; biases and norms are not at their start."""
    toy = TOYS[f"toy:{name}"]
    model, words, _ = build_sized(replace(toy, build=_decoder(name, **changes)) if changes else toy)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.2 if parameter.ndim == 1 else 0.1
            parameter += spread * torch.randn(parameter.shape, generator=generator)
    if tokenizer is not None:
        model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(str(folder))
    (tokenizer or words).save_pretrained(str(folder))
    return folder


def prompts(count: int = 20, longest: int = 40) -> list[Ids]:
    """Ids drawn from the toy's vocabulary."""
    generator = torch.Generator().manual_seed(1)
    sizes = torch.randint(3, longest, (count,), generator=generator).tolist()
    return [torch.randint(0, 630, (size,), generator=generator).tolist() for size in sizes]


def plain(folder: Path) -> Any:
    """The folder's model by plain transformers."""
    return AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()


def greedy(model: Any, asked: Sequence[Ids], length: int) -> list[Ids]:
    """transformers' greedy answers."""
    with torch.no_grad():
        return [
            model.generate(torch.tensor([ids]), max_new_tokens=length, do_sample=False)[0, len(ids) :].tolist()
            for ids in asked
        ]


def logits(model: Any, ids: Ids) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1]
