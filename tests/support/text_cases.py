"""Kinds of chat adapters: trained a little and saved by one process, loaded and asked by another.

Run as a program on the folder that `train_all` filled, it loads every kind in a new process, by our own loader and by
plain PEFT, and writes the logits beside them.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from luthier.models import adapters, quantized
from luthier.models.text_base import TextBase, load_text_base
from luthier.models.tokens import add_text_tokens
from luthier.models.toy_tokenizer import load_tokenizer
from luthier.models.toys import build_toy
from luthier.recipe_model import LoraSettings, ModelConfig

TOKENS = ["<|first|>", "<|second|>", "<|third|>"]
MANY = [f"<|many_{i}|>" for i in range(130)]
"""Two more than the toy has spare rows for."""
CASES: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora, bfloat16": {"dtype": "bfloat16"},
    "lora, all linear": {"target_modules": "all-linear"},
    "lora on an untied head": {"target_modules": r"lm_head|.*_proj", "untied": True},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "dora, bfloat16": {"use_dora": True, "dtype": "bfloat16"},
    "nf4": {"quantization": "nf4"},
    "nf4, dora": {"quantization": "nf4", "use_dora": True},
    "nf4, tokens": {"quantization": "nf4", "added_tokens": TOKENS},
    "int8": {"quantization": "int8"},
    "whole head, tied": {"modules_to_save": ["lm_head"]},
    "whole head and embedding, tied": {"modules_to_save": ["lm_head", "embed_tokens"]},
    "whole head, untied": {"modules_to_save": ["lm_head"], "untied": True},
    "whole norm": {"modules_to_save": ["norm"]},
    "tokens, tied": {"added_tokens": TOKENS},
    "tokens, untied": {"added_tokens": TOKENS, "untied": True},
    "tokens and whole head, untied": {"added_tokens": TOKENS, "modules_to_save": ["lm_head"], "untied": True},
    "tokens and whole head, tied": {"added_tokens": TOKENS, "modules_to_save": ["lm_head"]},
    "grown, tied": {"added_tokens": MANY},
    "grown, untied": {"added_tokens": MANY, "untied": True},
    "full": {"tuning": "full"},
    "full, untied": {"tuning": "full", "untied": True},
    "full, grown": {"tuning": "full", "added_tokens": MANY},
}
LORA = set(LoraSettings.__dataclass_fields__)


def write_base(folder: Path, tied: bool = True, name: str = "toy:llama") -> Path:
    """A toy base in the hub's layout; untied, with a head of its own."""
    model = build_toy(name)[0]
    if not tied:
        model.config.tie_word_embeddings = False
        generator = torch.Generator().manual_seed(9)
        model.lm_head.weight = torch.nn.Parameter(0.1 * torch.randn(model.lm_head.weight.shape, generator=generator))
    model.save_pretrained(folder)
    load_tokenizer().save_pretrained(folder)
    return folder


def config_of(root: Path, case: str) -> ModelConfig:
    settings = dict(CASES[case])
    base = root / ("untied" if settings.pop("untied", False) else "tied")
    lora = LoraSettings(r=4, alpha=8, dropout=0.0, **{key: settings.pop(key) for key in LORA & set(settings)})
    return ModelConfig(base=str(base), lora=lora, **settings)


def attached(config: ModelConfig, seed: int = 0) -> tuple[TextBase, Any]:
    """A base and its tuned model in evaluation mode, fresh from the seed."""
    base = load_text_base(config)
    tokens = add_text_tokens(base, config.added_tokens, seed)
    return base, adapters.attach(base, config, tokens, seed).eval()


def logits(model: Any, base: TextBase) -> torch.Tensor:
    """(1, T, V) in the type that the model gives, with the added tokens among those read."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([read_ids(base)])).logits


def read_ids(base: TextBase) -> list[int]:
    return [*range(20, 60), *sorted(base.added_tokens.values())[-3:], 7, 300]


def train(model: Any, base: TextBase, steps: int = 3, learning_rate: float = 1e-2) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    ids = torch.tensor([read_ids(base)])
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()


def train_all(root: Path) -> dict[str, torch.Tensor]:
    """Train and save every kind under root/CASE. Returns the logits of each, and before training as `CASE fresh`."""
    write_base(root / "tied")
    write_base(root / "untied", tied=False)
    found = {}
    for case in CASES:
        base, model = attached(config_of(root, case))
        found[f"{case} fresh"] = logits(model, base)
        train(model, base)
        found[case] = logits(model, base)
        (root / case).mkdir()
        adapters.save(model, root / case, base.name, base.facts())
    return found


def _plain(config: ModelConfig, folder: Path, rows: int) -> Any:
    """What someone without this package does."""
    dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}[config.dtype]
    options = quantized.loading_options(config.quantization, None, dtype, torch.device("cpu"))
    model = AutoModelForCausalLM.from_pretrained(config.base, dtype=dtype, **options)
    quantized.settle(model, dtype, torch.device("cpu"))  # or bitsandbytes fails at the toy's widths on some processors
    if rows > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(rows)
    return PeftModel.from_pretrained(model, str(folder)).eval()


def main(root: Path) -> None:
    found = {}
    for case in CASES:
        config = config_of(root, case)
        base, model = attached(config, seed=5)
        adapters.restore(model, root / case, base.facts())
        found[case] = logits(model, base)
        rows = adapters.bare(model).get_input_embeddings().weight.shape[0]
        found[f"{case} plain"] = logits(_plain(config, root / case, rows), base)
        (root / case / "facts.json").write_text(json.dumps(asdict(base.facts())))
    save_file({key: value.contiguous() for key, value in found.items()}, root / "reloaded.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
