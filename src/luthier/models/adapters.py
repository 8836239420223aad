"""What is tuned, and how it is saved: always as a folder that plain `peft` loads on the plain base.

* `lora`: LoRA through PEFT on the decoder by the family's anchored pattern, learned tokens through
  `trainable_token_indices`, encoder and projector through `modules_to_save` when the recipe tunes them.
* `full`: every weight that sound and prompt pass through is trained in place. It is saved in PEFT's own format as
  `modules_to_save` of every module that owns a tuned weight, so the same plain loader serves both.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from luthier.errors import CheckpointError, RequestError
from luthier.models.load import Base
from luthier.recipe_model import ModelConfig

WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_NO_LORA = "dummy-target-modules"
"""PEFT's own constant for a configuration without LoRA layers."""


def attach(base: Base, config: ModelConfig, token_ids: dict[str, int], seed: int) -> Any:
    """Make the base trainable as the recipe says. Returns the PEFT model (lora) or the bare one (full)."""
    if config.tuning == "full":
        model = base.model.float()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(base.family.frozen))
        return model
    return _attach_lora(base, config, token_ids, seed)


def _attach_lora(base: Base, config: ModelConfig, token_ids: dict[str, int], seed: int) -> Any:
    from peft import LoraConfig, get_peft_model

    pattern = config.lora.target_modules or base.family.decoder_pattern
    targets = [name for name, _ in base.model.named_modules() if re.fullmatch(pattern, name)]
    if not targets:
        raise RequestError(
            f"model.lora.target_modules: {pattern!r} matches no module of {config.base}",
            "leave it empty to take the family's pattern",
        )
    hearing = (base.family.encoder, *base.family.projector, *base.family.frozen)
    leaks = [name for name in targets if name.startswith(hearing)]
    if leaks:
        raise RequestError(
            f"model.lora.target_modules: {pattern!r} reaches into the encoders ({leaks[0]})",
            "anchor it, as in model\\.layers\\.\\d+\\.(self_attn|mlp)\\..*",
        )
    whole = [base.family.encoder] * config.train_encoder + list(base.family.projector) * config.train_projector
    settings = LoraConfig(
        r=config.lora.r,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=pattern,
        modules_to_save=whole or None,
        trainable_token_indices={"embed_tokens": sorted(token_ids.values())},
        base_model_name_or_path=config.base,
        bias="none",
    )
    base.model.name_or_path = config.base  # PEFT writes this name into adapter_config.json
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = get_peft_model(base.model, settings)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def bare(model: Any) -> Any:
    """The model of transformers under a PEFT wrapper (adapters stay active in its modules)."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def state(model: Any) -> dict[str, torch.Tensor]:
    """What is tuned, by PEFT's saved names, on the CPU and sorted."""
    if hasattr(model, "get_base_model"):
        from peft import get_peft_model_state_dict

        found = get_peft_model_state_dict(model, save_embedding_layers=False)
    else:
        found = {_PREFIX + name: value for name, value in _tuned(model)}
    return {name: found[name].detach().cpu().contiguous().clone() for name in sorted(found)}


def save(model: Any, folder: Path, base_name: str) -> None:
    """Write adapter_model.safetensors and adapter_config.json into a folder that is being filled."""
    save_file(state(model), str(folder / WEIGHTS))
    if hasattr(model, "get_base_model"):
        settings = model.peft_config["default"]
        training, settings.inference_mode = settings.inference_mode, True
        settings.save_pretrained(str(folder))
        settings.inference_mode = training
        return
    from peft import LoraConfig

    owners = _owners(model, [name for name, _ in _tuned(model)])
    LoraConfig(
        r=1,
        target_modules=_NO_LORA,
        modules_to_save=owners,
        base_model_name_or_path=base_name,
        inference_mode=True,
        task_type=None,
    ).save_pretrained(str(folder))


def restore(model: Any, folder: Path) -> None:
    """Put saved weights back. Raises CheckpointError naming keys when names or shapes differ."""
    saved = load_file(str(folder / WEIGHTS))
    here = state(model)
    differing = sorted(set(saved) ^ set(here)) or [key for key in here if here[key].shape != saved[key].shape]
    if differing:
        raise CheckpointError(
            f"{folder / WEIGHTS}: {len(differing)} weights do not fit the model, such as {differing[0]}",
            "use the recipe and base that it was trained with",
        )
    if hasattr(model, "get_base_model"):
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, saved)
    else:
        with torch.no_grad():
            for name, parameter in _tuned(model):
                parameter.copy_(saved[_PREFIX + name])


def reset_tokens(model: Any, base: Base, token_ids: dict[str, int], rows: torch.Tensor) -> None:
    """Give the learned tokens the rows (k, D), in the order of their sorted ids."""
    order = sorted(token_ids.values())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "trainable_tokens_delta" in name:
                parameter.copy_(rows.to(parameter))
                return
        base.model.get_input_embeddings().weight[order] = rows.to(base.model.get_input_embeddings().weight)


def _tuned(model: Any) -> list[tuple[str, torch.nn.Parameter]]:
    """Tuned weights of a bare model by name; the tied head appears under its own name too, as `peft` saves it."""
    found = [(name, p) for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad]
    return sorted(found, key=lambda item: item[0])


def _owners(model: Any, names: list[str]) -> list[str]:
    """The modules that own the named weights; a module inside another owner is left out."""
    owners = sorted({name.rpartition(".")[0] for name in names})
    return [name for name in owners if not any(name.startswith(other + ".") for other in owners)]


def sound_is_frozen(config: ModelConfig) -> bool:
    """Whether encoder and projector stay as they are, so that their outputs can be cached."""
    return config.tuning == "lora" and not (config.train_encoder or config.train_projector)
