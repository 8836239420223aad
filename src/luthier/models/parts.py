"""The parts of a base that sees or hears: what encodes its media, what leads from there to the decoder, the language.

Every weight belongs to one part, by its full name; what is tuned of a part, and how, is told at the start of a
training. PEFT holds modules, not single tensors: a learned separator that lies outside of every module of its part is
trained only where the module around it is, and is told as frozen otherwise. This module makes no adapter.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from luthier.console import table
from luthier.errors import RequestError
from luthier.models.families import TextFamily
from luthier.models.senses.base import Senses
from luthier.schema import PartType

LANGUAGE, PROJECTOR, ENCODER, UNUSED = "language", "projector", "encoder", "not used"
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
"""What PEFT cannot train whole, as it has no pass of its own."""
_WRAPPERS = re.compile(r"^base_model\.model\.|\.(modules_to_save\.\w+|original_module|base_layer)(?=\.|$)")
"""What PEFT puts into names."""


@dataclass(frozen=True)
class Parts:
    """Where the parts of a base are. Without `senses` all that is not the decoder is one part that is never tuned."""

    family: TextFamily
    senses: Senses | None = None

    def of(self, name: str) -> str:
        """The part of a parameter or module, by its full name in the bare model or under PEFT."""
        return self.place(name)[0]

    def place(self, name: str) -> tuple[str, frozenset[PartType]]:
        """Its part, and the kinds of media that go through it. Where prefixes lie in one another the longest counts."""
        plain = _WRAPPERS.sub("", name)
        best, part, kinds = -1, "", set[PartType]()
        for where, places in self._named():
            for kind, prefixes in places.items():
                for prefix in prefixes:
                    if plain == prefix or plain.startswith(f"{prefix}."):
                        if len(prefix) > best:
                            best, part, kinds = len(prefix), where, set()
                        if len(prefix) == best and where == part:
                            kinds.add(kind)
        if best < 0:
            part = UNUSED if plain.startswith(self.family.frozen) else LANGUAGE
        return part, frozenset(kinds)

    @property
    def prefixes(self) -> list[str]:
        """Of all encoders and projectors."""
        return [prefix for _, places in self._named() for prefixes in places.values() for prefix in prefixes]

    def _named(self) -> list[tuple[str, Any]]:
        if self.senses is None:
            return []
        return [(ENCODER, self.senses.encoders), (PROJECTOR, self.senses.projectors)]

    def linear(self, model: Any, part: str) -> list[str]:
        """Full names of a part's linear layers, without the language model's head.

        Raises RequestError where there is none.
        """
        head = model.get_output_embeddings()
        blended = tuple(f"{name}." for name, one in model.named_modules() if isinstance(one, nn.MultiheadAttention))
        found = [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear)
            and module is not head
            and self.of(name) == part
            # Torch's own attention reads the weights of its layers and never calls them.
            and not (blended and name.startswith(blended))
        ]
        if not found:
            raise RequestError(
                f"model.lora.parts: the {part} of {self.family.name} has no linear layer",
                f"leave {part} out, or train it whole with model.train_{part}",
            )
        return found

    def parameters(self, model: nn.Module, parts: Collection[str]) -> set[str]:
        """Full names of what belongs to some parts."""
        return {name for name, _ in model.named_parameters(remove_duplicate=False) if self.of(name) in parts}


def modules_of(model: nn.Module, names: Collection[str], within: Sequence[str] = ("",)) -> list[str]:
    """The fewest modules that own these parameters and no others. Parameters that no such module owns are left out.

    `within` are prefixes that the modules lie in.
    """
    prefixes = tuple(f"{prefix}." if prefix else "" for prefix in within)
    found: list[str] = []

    def descend(name: str, module: nn.Module) -> None:
        own = [inner for inner, _ in module.named_parameters(prefix=name, remove_duplicate=False)]
        here = [inner in names for inner in own]
        fits = bool(name) and f"{name}.".startswith(prefixes) and not isinstance(module, _CONTAINERS)
        if own and all(here) and fits:
            found.append(name)
        elif any(here):
            for child, inside in module.named_children():
                descend(f"{name}.{child}" if name else child, inside)

    descend("", model)
    return found


def freeze_unseen(model: nn.Module, parts: Parts, kinds: Collection[PartType]) -> list[str]:
    """Freeze what only media of other kinds go through; returns the names of what was frozen. Saved folders hold it."""
    frozen = []
    for name, parameter in model.named_parameters():
        part, through = parts.place(name)
        if parameter.requires_grad and part in (ENCODER, PROJECTOR) and through.isdisjoint(kinds):
            parameter.requires_grad_(False)
            frozen.append(name)
    return frozen


@dataclass
class Tuned:
    """What is tuned of a part, in parameters."""

    base: int = 0
    adapters: int = 0
    whole: int = 0
    still: list[str] = field(default_factory=list)
    """Some names of what is frozen in a part of which other weights are trained whole."""

    def how(self) -> str:
        """frozen, LoRA or whole, with figures."""
        if not self.adapters and not self.whole:
            return "frozen"
        said = [f"LoRA, {self.adapters:,} trained"] * bool(self.adapters)
        if self.whole:
            rest = self.base - self.whole
            left = f", but {rest:,} frozen ({', '.join(self.still[:3])})" if rest else ""
            said.append(f"whole, {self.whole:,} trained{left}")
        return "; ".join(said)


def tuned(model: nn.Module, parts: Parts) -> dict[str, Tuned]:
    """What is tuned, by part: of encoders by the media that go through them too."""
    found: dict[str, Tuned] = {}
    for name, parameter in model.named_parameters():
        if ".original_module" in name:  # the base's own, beside its copy that is trained
            continue
        part, kinds = parts.place(name)
        one = found.setdefault(f"{part} of {', '.join(sorted(kinds))}" if kinds else part, Tuned())
        count = parameter.numel()
        if "lora_" in name or "trainable_tokens_delta" in name:
            one.adapters += count * parameter.requires_grad
            continue
        one.base += count
        one.whole += count * parameter.requires_grad
        if not parameter.requires_grad:
            one.still.append(_WRAPPERS.sub("", name))
    return found


def told(model: nn.Module, parts: Parts) -> str:
    """The table of parts: what is frozen, what has an adapter, what is trained whole."""
    lines = [[part, f"{one.base:,}", one.how()] for part, one in tuned(model, parts).items()]
    return table(["part", "parameters", "tuning"], lines)


def wanted_parts(lora: Sequence[str], train_encoder: bool, train_projector: bool, adapts: bool) -> list[str]:
    """The parts beside the language that a recipe tunes in any way. Raises RequestError for one tuned in two ways."""
    whole = [ENCODER] * train_encoder + [PROJECTOR] * train_projector
    twice = [part for part in whole if adapts and part in lora]
    if twice:
        raise RequestError(
            f"model.train_{twice[0]}: {twice[0]} is in model.lora.parts too", "train it whole or with LoRA, not both"
        )
    return [*whole, *(part for part in lora if adapts and part != LANGUAGE)]
