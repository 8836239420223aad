"""What all sides of the training benchmark are given: rows of token ids, the steps they fall into, and the settings.

Read by our own environment and by those of the peers, so it needs torch, NumPy and safetensors alone. Shapes: T all
tokens of all rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

IGNORED = -100
"""The label of a token that is not learned, as transformers has it."""


@dataclass(frozen=True)
class Settings:
    """What decides the losses, and is the same on every side."""

    vocabulary: int
    seed: int
    steps: int
    rows_per_step: int
    learning_rate: float = 2e-4
    max_grad_norm: float = 1.0
    lora_r: int = 16
    lora_alpha: int = 32


@dataclass(frozen=True)
class Work:
    """One folder that generate.py wrote: `model/`, `adapter/`, the rows, and the settings."""

    folder: Path
    settings: Settings
    ids_T: NDArray[np.int32]
    learned_T: NDArray[np.uint8]
    starts: NDArray[np.int64]

    @classmethod
    def read(cls, folder: Path) -> Work:
        found = load_file(folder / "rows.safetensors")
        settings = Settings(**json.loads((folder / "settings.json").read_text(encoding="utf-8")))
        return cls(folder, settings, found["ids"], found["learned"], found["starts"])

    def write(self) -> None:
        tensors = {"ids": self.ids_T, "learned": self.learned_T, "starts": self.starts}
        save_file(tensors, self.folder / "rows.safetensors")
        text = json.dumps(asdict(self.settings), indent=1)
        (self.folder / "settings.json").write_text(f"{text}\n", encoding="utf-8")

    @property
    def model(self) -> str:
        return str(self.folder / "model")

    @property
    def adapter(self) -> str:
        return str(self.folder / "adapter")

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.starts)

    def steps(self) -> Iterator[list[int]]:
        """The rows of each optimizer step, longest first: sides that pad then pad least."""
        size = self.settings.rows_per_step
        for step in range(self.settings.steps):
            rows = range(step * size, (step + 1) * size)
            yield sorted(rows, key=lambda row: -self.lengths[row])

    def tokens(self) -> list[int]:
        """Tokens of each optimizer step, padding not counted."""
        return [int(sum(self.lengths[row] for row in rows)) for rows in self.steps()]

    def ids(self, row: int) -> NDArray[np.int64]:
        return self.ids_T[self.starts[row] : self.starts[row + 1]].astype(np.int64)

    def learned(self, row: int) -> NDArray[np.bool_]:
        return self.learned_T[self.starts[row] : self.starts[row + 1]].astype(bool)

    def labels(self, row: int) -> NDArray[np.int64]:
        """The row's ids where they are learned, IGNORED elsewhere; not shifted."""
        return np.where(self.learned(row), self.ids(row), IGNORED)
