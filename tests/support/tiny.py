"""The smallest learner that trains, saves and refuses: for tests of checkpoints alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from luthier.errors import CheckpointError
from luthier.files import read_json, write_json
from luthier.models.learner import Learner
from luthier.models.losses import Loss

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"


class Tiny(Learner):
    """A linear layer on a named base."""

    def __init__(self, base: str = "toy") -> None:
        super().__init__()
        self.base = base
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layer = nn.Linear(4, 3)

    def step_weights(self, group: Sequence[Any]) -> Any:
        return float(len(group))

    def loss(self, batch: Any, weights: Any) -> tuple[torch.Tensor, Loss]:
        total = self.layer(batch).square().sum()
        return total / weights, Loss(total, weights)

    def save(self, folder: Path) -> None:
        save_file({name: value.detach() for name, value in self.tuned()}, str(folder / WEIGHTS))
        write_json(folder / SETTINGS, {"base": self.base})

    def load(self, folder: Path) -> None:
        base = read_json(folder / SETTINGS)["base"]
        if base != self.base:
            raise CheckpointError(f"{folder}: is of the base {base}, not {self.base}", "name that base")
        saved = load_file(str(folder / WEIGHTS))
        with torch.no_grad():
            for name, value in self.tuned():
                value.copy_(saved[name])


class Training:
    """A tiny training that stands after some step."""

    def __init__(self, steps: int = 0, base: str = "toy") -> None:
        self.learner = Tiny(base)
        self.optimizer = torch.optim.AdamW(self.learner.parameters(), lr=0.1, foreach=False)
        self.state: dict[str, Any] = {"step": 0}
        for _ in range(steps):
            self.advance()

    def advance(self) -> None:
        """One step, which is a function of its number."""
        self.state = {**self.state, "step": self.state["step"] + 1}
        self.optimizer.zero_grad()
        loss, _ = self.learner.loss(torch.linspace(-1, self.state["step"], 8).view(2, 4), 1.0)
        loss.backward()
        self.optimizer.step()

    def digest(self) -> str:
        """Of weights, optimizer and state, bit for bit."""
        found = hashlib.sha256(repr(sorted(self.state.items())).encode())
        for name, value in self.learner.tuned():
            found.update(name.encode() + value.detach().numpy().tobytes())
            for key, moment in sorted(self.optimizer.state[value].items()):
                found.update(key.encode() + moment.numpy().tobytes())
        return found.hexdigest()
