"""Which modules of a base an adapter reaches: the recipe's words become names of modules, or are refused.

PEFT matches names by their ends and takes what matches, or nothing, without a word. Here every name is resolved in
full before PEFT sees it. This module changes no model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from luthier.errors import RequestError
from luthier.models.families import TextFamily
from luthier.models.parts import LANGUAGE, Parts

ALL_LINEAR = "all-linear"


def is_tied(model: Any) -> bool:
    """Whether the head is the embedding matrix."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    return head is not None and head.weight is embeddings.weight


def name_of(model: nn.Module, wanted: nn.Module) -> str:
    """The full name of a module."""
    return next(name for name, module in model.named_modules() if module is wanted)


def part_targets(model: Any, parts: Parts, wanted: Sequence[str], pattern: str) -> str | list[str]:
    """As `lora_targets`, in the wanted parts of a base that sees or hears.

    An empty pattern is the family's own in the decoder, and every linear layer of the other parts. A pattern of the
    recipe must reach each wanted part, and no other.
    """
    if list(wanted) == [LANGUAGE]:
        return lora_targets(model, parts.family, pattern)
    linear = [name for part in wanted if part != LANGUAGE for name in parts.linear(model, part)]
    if pattern == ALL_LINEAR or not pattern:
        decoder = _names(model, lora_targets(model, parts.family, pattern)) if LANGUAGE in wanted else []
        return [*decoder, *linear]
    found = [name for name, _ in model.named_modules() if re.fullmatch(pattern, name)]
    reached = {parts.of(name) for name in found}
    if reached != set(wanted):
        raise RequestError(
            f"model.lora.target_modules: {pattern!r} reaches {', '.join(sorted(reached)) or 'nothing'}, and "
            f"model.lora.parts is {', '.join(wanted)}",
            "leave it empty to take every linear layer of these parts, or name the parts that it reaches",
        )
    _refuse_others(model, pattern, found)
    return pattern


def _names(model: Any, targets: str | Sequence[str]) -> list[str]:
    """Full names of what PEFT would match."""
    if not isinstance(targets, str):
        return list(targets)
    return [name for name, _ in model.named_modules() if re.fullmatch(targets, name)]


def lora_targets(model: Any, family: TextFamily, pattern: str) -> str | list[str]:
    """What PEFT is given as target_modules: a pattern whose every match was looked at, or full names.

    `pattern` is the recipe's: empty for the family's own, `all-linear` for every linear layer but the head, or a
    regular expression that must match a whole name. Raises RequestError when it reaches nothing, an encoder, a module
    that is no linear layer, or a matrix that is the head and the embedding at once.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if pattern == ALL_LINEAR:
        head = name_of(model, model.get_output_embeddings())
        return [name for name in linear if name != head and not name.startswith(family.closed)]
    chosen = pattern or family.decoder_pattern
    if not chosen:
        raise RequestError(
            f"model.lora.target_modules: no pattern is known for architecture {family.name!r}",
            f"set it to {ALL_LINEAR}, or to a pattern; linear modules here: {_listed(linear)}",
        )
    found = [name for name, _ in model.named_modules() if re.fullmatch(chosen, name)]
    if not found:
        raise RequestError(
            f"model.lora.target_modules: {chosen!r} matches no module of the base",
            f"leave it empty to take the family's pattern; linear modules here: {_listed(linear)}",
        )
    _refuse(model, family, chosen, found)
    return chosen


def _refuse(model: Any, family: TextFamily, chosen: str, found: Sequence[str]) -> None:
    leaks = [name for name in found if name.startswith(family.closed)]
    if leaks:
        raise RequestError(
            f"model.lora.target_modules: {chosen!r} reaches into the encoders ({leaks[0]})",
            "anchor it, as in model\\.layers\\.\\d+\\.(self_attn|mlp)\\..*, or name their part in model.lora.parts",
        )
    _refuse_others(model, chosen, found)


def _refuse_others(model: Any, chosen: str, found: Sequence[str]) -> None:
    """Refuse what has no adapter, in whatever part it is."""
    ends = {name_of(model, part) for part in (model.get_input_embeddings(), model.get_output_embeddings())}
    shared = sorted(ends.intersection(found))
    if shared and is_tied(model):
        raise RequestError(
            f"model.lora.target_modules: {chosen!r} matches {shared[0]}, which is head and embedding in one matrix: "
            "merged, the adapter would change both",
            f"leave it out of the pattern, and train it whole with model.modules_to_save: [{shared[0]}]",
        )
    others = [name for name in found if not isinstance(model.get_submodule(name), nn.Linear)]
    if others:
        raise RequestError(
            f"model.lora.target_modules: {chosen!r} matches {others[0] or 'the whole model'}, which is no linear layer",
            f"end it with the names of linear layers, or set it to {ALL_LINEAR}",
        )


def whole_modules(model: Any, wanted: Sequence[str], targets: str | Sequence[str]) -> list[str]:
    """Full names of the modules in model.modules_to_save. Raises RequestError for one that cannot be trained whole."""
    names = [name for name, _ in model.named_modules() if name]
    found = []
    for short in wanted:
        full = [name for name in names if name == short or name.endswith("." + short)]
        if not full:
            raise RequestError(
                f"model.modules_to_save: {short!r} is no module of the base", f"modules here: {_listed(names)}"
            )
        found += full
    for name in found:
        if any(not value.is_floating_point() for value in model.get_submodule(name).parameters()):
            raise RequestError(
                f"model.modules_to_save: {name} is quantised and cannot be trained whole", "leave it to LoRA"
            )
        inside = [other for other in names if other == name or other.startswith(name + ".")]
        if any(re.fullmatch(targets, other) if isinstance(targets, str) else other in targets for other in inside):
            raise RequestError(
                f"model.modules_to_save: {name} is in model.lora.target_modules too", "name it in one of them"
            )
    return found


def _listed(names: Sequence[str]) -> str:
    """Names with the numbers of layers left out, each once."""
    return ", ".join(dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".N", name) for name in names))
