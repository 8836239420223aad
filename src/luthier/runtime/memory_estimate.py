"""What is foretold of a run's memory, part by part, and whether that is there. Knows no model: others fill it in."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from luthier.console import table
from luthier.recipe import Recipe
from luthier.runtime.memory import free_memory


@dataclass(frozen=True)
class Part:
    """A line of the estimate."""

    name: str
    bytes: int
    note: str = ""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes at the moment when most are in use, by part."""

    parts: tuple[Part, ...]
    here_already: int = 0
    """Of the total, what this process holds before anything is loaded."""

    @property
    def total(self) -> int:
        return sum(part.bytes for part in self.parts)

    @property
    def needed(self) -> int:
        """What must be free before anything is loaded."""
        return self.total - self.here_already

    def of(self, *names: str) -> int:
        """The sum of some parts."""
        return sum(part.bytes for part in self.parts if part.name in names)

    def table(self) -> str:
        """At most 100 columns wide."""
        lines = [[part.name, _mib(part.bytes), part.note] for part in self.parts]
        return table(["memory", "MiB", ""], [*lines, ["at the peak", _mib(self.total), ""]])

    def to_json(self) -> dict[str, int]:
        return {**{part.name: part.bytes for part in self.parts}, "total": self.total}


def fits(estimate: MemoryEstimate, recipe: Recipe, device: torch.device, free: int | None = None) -> list[str]:
    """Nothing where it fits, else one line of what is missing, with the keys to change, the most telling first.

    `free` are the bytes that can be had; None asks the device.
    """
    room = free_memory(device) if free is None else free
    if estimate.needed <= room:
        return []
    model, train = recipe.model, recipe.train
    passing = estimate.of("activations", "buffers")
    ways = []
    if estimate.needed - passing < room:
        if not train.gradient_checkpointing and estimate.of("activations"):
            ways.append("train.gradient_checkpointing: true")
        ways.append("a lower train.micro_batch_tokens" if train.micro_batch_tokens else "train.micro_batch_tokens")
        ways.append("a lower train.micro_batch_size or model.max_tokens")
    else:
        if model.tuning == "full":
            ways.append("model.tuning: lora")
        elif not model.quantization:
            ways.append("model.quantization: nf4")
        if model.dtype == "float32":
            ways.append("model.dtype: bfloat16")
        if estimate.of("optimizer", "gradients", "trained weights") > estimate.of("base weights") and model.lora.r > 1:
            ways.append("a lower model.lora.r" if model.tuning == "lora" else "train.optimizer: adamw_8bit")
        ways.append("a smaller model.base")
    place = "the GPU has" if device.type == "cuda" else "this machine has"
    return [
        f"memory: {_mib(estimate.needed)} MiB are needed, and {place} {_mib(room)} MiB free\n"
        f"  mend: set {', or '.join(ways)}"
    ]


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f}"
