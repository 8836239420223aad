"""What is tuned, and how it is saved: always as a folder that plain `peft` loads on the plain base.

* `lora`: LoRA, rsLoRA or DoRA through PEFT on the modules that `targets` resolves, new tokens through
  `trainable_token_indices`, whole modules through `modules_to_save`.
* `full`: every weight that the inputs pass through is trained in place. It is saved in PEFT's own format as
  `modules_to_save` of every module that owns a tuned weight, so the same plain loader serves both.

Of a base that sees or hears the language is tuned, and no other part unless the recipe names it: with LoRA in
model.lora.parts, or whole with model.train_encoder and model.train_projector (see `parts`).

What is tuned is held in float32 whatever the base is held in: in bfloat16 a usual step is rounded away. A chat's folder
also says which base and tokenizer it belongs to (adapter_base.json), and is refused on any other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from luthier.errors import CheckpointError, RequestError
from luthier.files import read_json, write_json
from luthier.models import quantized
from luthier.models.load import Base
from luthier.models.parts import ENCODER, LANGUAGE, PROJECTOR, Parts, modules_of, wanted_parts
from luthier.models.targets import is_tied, name_of, part_targets, whole_modules
from luthier.models.text_base import BaseFacts, TextBase
from luthier.recipe_model import ModelConfig

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
FACTS = "adapter_base.json"
_PREFIX = "base_model.model."
_NO_LORA = "dummy-target-modules"
"""PEFT's own constant for a configuration without LoRA layers."""
_SCALE = ("r", "lora_alpha", "use_rslora", "use_dora")
"""Settings that change what saved tensors mean without changing a name or a shape."""
_TUNED = "luthier_tuned"
"""Where a base whose weights are trained in place keeps the names of what its folder holds."""
_PATTERNS = ("rank_pattern", "alpha_pattern")
"""Settings of adapters made elsewhere: exceptions from r and lora_alpha, by module."""


def attach(base: Base | TextBase, config: ModelConfig, token_ids: Mapping[str, int], seed: int) -> Any:
    """Make the base trainable as the recipe says. Returns the PEFT model (lora) or the bare one (full).

    `token_ids` are the new tokens whose rows are trained; fresh weights follow from the seed alone. Gradient
    checkpointing needs nothing from here as long as it is the non-reentrant kind.
    """
    if config.tuning == "full":
        if quantized.kind_of(base.model):
            raise RequestError(
                f"model.tuning: full, and {config.base} is quantised", "set model.tuning: lora, or take a whole base"
            )
        return _tune_in_place(base, config)
    return _attach_lora(base, config, sorted({*token_ids.values(), *base.grown}), seed)


def parts_of(base: Base | TextBase, config: ModelConfig) -> Parts:
    """The parts of a base, told apart as far as the recipe tunes them.

    Raises RequestError where it tunes a part that the base does not have, or one in two ways.
    """
    wanted = wanted_parts(config.lora.parts, config.train_encoder, config.train_projector, config.tuning == "lora")
    if not isinstance(base, TextBase) or not wanted:
        return Parts(base.family)
    if base.senses is None:
        raise RequestError(
            f"model: {wanted[0]} is to be tuned, and {config.base} reads text alone",
            "set model.lora.parts: [language], and model.train_encoder and model.train_projector: false",
        )
    return Parts(base.family, base.senses)


def _whole_parts(config: ModelConfig) -> list[str]:
    return [ENCODER] * config.train_encoder + [PROJECTOR] * config.train_projector


def _tune_in_place(base: Base | TextBase, config: ModelConfig) -> Any:
    model = base.model.float()
    parts = parts_of(base, config)
    # Of a verdict's base the encoder that is passed is not `frozen`, and so goes with the language.
    language = parts.parameters(model, [LANGUAGE])
    others = parts.parameters(model, _whole_parts(config))
    # The folder would hold the language twice where a part's own tensor lies in the module around both.
    trained = language | {name for name in others if not any(_owned(one, _owner(name)) for one in language)}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        parameter.requires_grad_(name in trained)
    owners = _owners([name for name, _ in _trained(model)])
    everything = (name for name, _ in model.named_parameters(remove_duplicate=False))
    setattr(model, _TUNED, frozenset(name for name in everything if any(_owned(name, owner) for owner in owners)))
    return model


def _owner(name: str) -> str:
    """The module that a parameter is of."""
    return name.rpartition(".")[0]


def _owned(name: str, module: str) -> bool:
    return name.startswith(module + ".")


def _attach_lora(base: Base | TextBase, config: ModelConfig, rows: list[int], seed: int) -> Any:
    from peft import LoraConfig, get_peft_model

    _refuse_dora_on_int8(base.model, config)
    parts = parts_of(base, config)
    targets = part_targets(base.model, parts, config.lora.parts, config.lora.target_modules)
    whole = whole_modules(base.model, config.modules_to_save, targets)
    if isinstance(base, Base):
        whole += [base.family.encoder] * config.train_encoder + list(base.family.projector) * config.train_projector
    else:
        # Not above these names, by which the parts are found under PEFT too.
        whole += modules_of(base.model, parts.parameters(base.model, _whole_parts(config)), parts.prefixes)
    ends = {name_of(base.model, part) for part in (base.model.get_input_embeddings(), _head(base.model))}
    together = is_tied(base.model) and not ends.isdisjoint(whole)
    settings = LoraConfig(
        task_type="CAUSAL_LM" if isinstance(base, TextBase) else None,
        r=config.lora.r,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        use_rslora=config.lora.use_rslora,
        use_dora=config.lora.use_dora,
        target_modules=targets,
        modules_to_save=whole or None,
        trainable_token_indices=_token_rows(base, rows, whole, together) or None,
        ensure_weight_tying=together,
        base_model_name_or_path=config.base,
        revision=base.revision or None if isinstance(base, TextBase) else None,
        bias="none",
    )
    base.model.name_or_path = config.base  # PEFT writes this name into adapter_config.json
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = get_peft_model(base.model, settings)
        except ValueError as error:
            raise RequestError(
                f"model.lora: PEFT refuses {config.base}: {error}",
                "leave these modules out of model.lora.target_modules, or take another base",
            ) from error
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    _begin_dora_as_the_base(model)
    return model


def _begin_dora_as_the_base(model: Any) -> None:
    """Set DoRA's magnitudes to the norms of the base's rows, in float32.

    PEFT takes them in the base's type and divides by float32 norms: on a bfloat16 base every row would begin up to
    0.4 % too long or too short.
    """
    from peft.utils.integrations import dequantize_module_weight

    for module in model.modules():
        for vector in getattr(module, "lora_magnitude_vector", {}).values():
            weight = dequantize_module_weight(module.get_base_layer()).detach().float()
            vector.weight.data = torch.linalg.norm(weight, dim=1)


def _token_rows(base: Base | TextBase, rows: list[int], whole: list[str], together: bool) -> dict[str, list[int]]:
    """Which rows of which matrix are trained alone: of the embedding, and of a head that is a matrix of its own.

    PEFT lets a tied head follow the embedding; a matrix that is trained whole needs no rows.
    """
    model = base.model
    parts = [model.get_input_embeddings()] if is_tied(model) else [model.get_input_embeddings(), _head(model)]
    names = [] if together or not rows else [name_of(model, part) for part in parts]
    if isinstance(getattr(_head(model), "bias", None), torch.Tensor) and names:
        raise RequestError(
            f"model.added_tokens: the head of {base.family.name} has a bias, which PEFT would leave out",
            "leave model.added_tokens empty, or set model.tuning: full",
        )
    return {name: rows for name in names if name not in whole}


def _head(model: Any) -> torch.nn.Module:
    head: torch.nn.Module = model.get_output_embeddings()
    return head


def _refuse_dora_on_int8(model: Any, config: ModelConfig) -> None:
    """On a processor PEFT copies an int8 weight for DoRA's norm and loses its scales on the way."""
    if config.lora.use_dora and quantized.kind_of(model) == "int8" and model.device.type == "cpu":
        raise RequestError(
            "model.lora.use_dora: does not work on int8 weights on a processor", "set model.quantization: nf4"
        )


def checkpoint_activations(model: Any) -> None:
    """Keep no activations inside the layers of a bare model; backward computes them again."""
    # transformers 5.23 calls it so; before, it was gradient_checkpointing_enable.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def bare(model: Any) -> Any:
    """The model of transformers under a PEFT wrapper (adapters stay active in its modules)."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _live(model: Any) -> dict[str, torch.Tensor]:
    """What is tuned, by PEFT's saved names, sorted: the very tensors, not copies."""
    if hasattr(model, "get_base_model"):
        from peft import get_peft_model_state_dict

        found = get_peft_model_state_dict(model, save_embedding_layers=False)
    else:
        found = {_PREFIX + name: value for name, value in _tuned(model)}
    return {name: found[name].detach() for name in sorted(found)}


def state(model: Any) -> dict[str, torch.Tensor]:
    """What is tuned, by PEFT's saved names, as copies on the CPU, sorted."""
    return {name: value.cpu().contiguous().clone() for name, value in _live(model).items()}


def digest(model: Any) -> str:
    """sha256 over what is tuned and the settings that give it its scale; "" where nothing is.

    The same for a model in training and for one that its saved folder was put on.
    """
    tuned = _live(model)
    if not tuned:
        return ""
    settings = _settings(model, "")
    found = hashlib.sha256(repr([getattr(settings, key) for key in (*_SCALE, *_PATTERNS)]).encode())
    for name, value in tuned.items():
        found.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        found.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def save(model: Any, folder: Path, base_name: str, facts: BaseFacts | None = None) -> None:
    """Write adapter_model.safetensors and adapter_config.json into a folder that is being filled.

    With `facts`, adapter_base.json too: a verdict says them in its own package.
    """
    save_file(state(model), str(folder / WEIGHTS))
    settings = _settings(model, base_name)
    training, settings.inference_mode = settings.inference_mode, True
    settings.save_pretrained(str(folder))
    settings.inference_mode = training
    if facts is not None:
        write_json(folder / FACTS, facts.as_json())


def _settings(model: Any, base_name: str) -> Any:
    """PEFT's configuration of a tuned model."""
    if hasattr(model, "get_base_model"):
        return model.peft_config["default"]
    from peft import LoraConfig

    owners = _owners([name for name, _ in _tuned(model)])
    return LoraConfig(
        r=1, target_modules=_NO_LORA, modules_to_save=owners, base_model_name_or_path=base_name, task_type=None
    )


def restore(model: Any, folder: Path, facts: BaseFacts | None = None) -> None:
    """Put saved weights back, to the last bit.

    Raises CheckpointError when a file is missing or torn, when names, shapes or the adapter's scale differ, and (with
    `facts`) when it was trained on another base or tokenizer. Nothing is changed before all is checked.
    """
    if facts is not None:
        check_base(read(folder / FACTS), facts, folder)
    _check_scale(read(folder / CONFIG), _settings(model, ""), folder)
    saved = read(folder / WEIGHTS)
    here = _live(model)
    differing = sorted(set(saved) ^ set(here)) or [key for key in here if here[key].shape != saved[key].shape]
    if differing:
        raise CheckpointError(
            f"{folder / WEIGHTS}: {len(differing)} weights do not fit the model, such as {differing[0]}",
            "use the recipe and base that it was trained with",
        )
    with torch.no_grad():
        for name, value in here.items():
            value.copy_(saved[name])


def read(path: Path) -> Any:
    """A .safetensors or JSON file of an adapter's folder. Raises CheckpointError where it is missing or torn."""
    try:
        return load_file(str(path)) if path.suffix == ".safetensors" else read_json(path)
    except (OSError, ValueError, SafetensorError) as error:
        reason = "is missing" if not path.is_file() else f"cannot be read ({error})"
        raise CheckpointError(f"{path}: {reason}", "take the folder from its origin again") from error


def _check_scale(saved: dict[str, Any], here: Any, folder: Path) -> None:
    for key in _SCALE:
        if saved.get(key) != getattr(here, key):
            raise CheckpointError(
                f"{folder / CONFIG}: {key} is {saved.get(key)}, and {getattr(here, key)} in the recipe",
                "use the model.lora settings that it was trained with",
            )


def check_base(saved: dict[str, Any], facts: BaseFacts, folder: Path) -> None:
    """Raise CheckpointError where adapter_base.json of `folder` speaks of another base or tokenizer.

    Names may differ (a copy in another place is the same base); bytes may not. A base held in another number format
    has other bytes: then its name and revision must be the same.
    """
    wanted = facts.as_json()
    same_format = saved.get("dtype") == wanted["dtype"]
    for key, what in (
        ("quantization", "on a base held in another way"),
        *([("weights_sha256", "on other weights")] if same_format else [("name", "on another base")]),
        ("tokenizer_sha256", "with another tokenizer or chat template"),
        ("added_tokens", "with other model.added_tokens"),
    ):
        if saved.get(key) != wanted[key]:
            raise CheckpointError(
                f"{folder / FACTS}: trained {what}: {key} is {_short(saved.get(key))}, and {_short(wanted[key])} for "
                f"{facts.name}",
                f"use {saved.get('name')} {saved.get('revision') or ''}".rstrip() + ", as its recipe has it",
            )


def _short(value: Any) -> str:
    """A value as people compare it: of a digest the first twelve digits."""
    return value[:12] if isinstance(value, str) and len(value) == 64 else repr(value)


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
    """What a bare model's folder holds by name: what is trained, what was frozen since (`parts.freeze_unseen`), and
    what shares a module with either."""
    names = getattr(model, _TUNED, None)
    if names is None:
        return _trained(model)
    return [
        (name, p) for name, p in sorted(model.named_parameters(remove_duplicate=False), key=_by_name) if name in names
    ]


def _trained(model: Any) -> list[tuple[str, torch.nn.Parameter]]:
    """Trained weights of a bare model; the tied head appears under its own name too, as `peft` saves it."""
    found = sorted(model.named_parameters(remove_duplicate=False), key=_by_name)
    return [(name, p) for name, p in found if p.requires_grad]


def _by_name(item: tuple[str, torch.nn.Parameter]) -> str:
    return item[0]


def _owners(names: list[str]) -> list[str]:
    """The modules that own the named weights; a module inside another owner is left out."""
    owners = sorted({_owner(name) for name in names})
    return [name for name in owners if not any(_owned(name, other) for other in owners)]


def sound_is_frozen(config: ModelConfig) -> bool:
    """Whether encoder and projector stay as they are, so that their outputs can be cached."""
    return config.tuning == "lora" and not (config.train_encoder or config.train_projector)
