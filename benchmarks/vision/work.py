"""What both sides of the benchmark of stored vectors are given: rows, settings, and the record of what a side took.

Read by our own environment and by TRL's: torch and the standard library at import, and ours alone asks for `recipe`.
"""

from __future__ import annotations

import json
import resource
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PROMPT = "What is shown in this image?"


@dataclass(frozen=True)
class Settings:
    """What decides the losses, and is the same on every side."""

    eyes: str
    """toy or large."""
    seed: int
    pictures: int
    rows_per_step: int
    epochs: int
    learning_rate: float = 2e-4
    max_grad_norm: float = 1.0
    lora_r: int = 16
    lora_alpha: int = 32

    @property
    def steps(self) -> int:
        return self.epochs * -(-self.pictures // self.rows_per_step)


@dataclass(frozen=True)
class Work:
    """One folder that generate.py wrote: `model/`, `adapter/`, the pictures, and the rows in the order of an epoch."""

    folder: Path
    settings: Settings
    rows: list[dict[str, str]]

    @classmethod
    def read(cls, folder: Path) -> Work:
        found = json.loads((folder / "work.json").read_text(encoding="utf-8"))
        return cls(folder, Settings(**found["settings"]), found["rows"])

    def write(self) -> None:
        text = json.dumps({"settings": asdict(self.settings), "rows": self.rows})
        (self.folder / "work.json").write_text(text, encoding="utf-8")

    @property
    def model(self) -> str:
        return str(self.folder / "model")

    @property
    def adapter(self) -> str:
        return str(self.folder / "adapter")


@dataclass
class Meter:
    """One side's figures. `begin` when the model is there, `step` after each step, `report` at the end."""

    work: Work
    begun: tuple[float, float] = (0.0, 0.0)
    """Wall and processor seconds."""
    stamps: list[tuple[float, float]] = field(default_factory=list)
    losses: list[Any] = field(default_factory=list)

    def begin(self) -> None:
        self.begun = (time.perf_counter(), time.process_time())

    def step(self) -> None:
        self.stamps.append((time.perf_counter(), time.process_time()))

    def report(self, more: dict[str, Any]) -> None:
        """One line of JSON. All that a side does once the model is there counts, preparing included."""
        settings = self.work.settings
        if len(self.stamps) != settings.steps:
            raise RuntimeError(f"{len(self.stamps)} steps were done, {settings.steps} asked for")
        wall, cpu = (end - begin for end, begin in zip(self.stamps[-1], self.begun, strict=True))
        looks = settings.epochs * settings.pictures
        found = {
            "seconds": wall,
            "images_per_s": looks / wall,
            "images_per_cpu_s": looks / cpu,
            "losses": [float(loss) for loss in self.losses],
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
            **more,
        }
        print(f"\n{json.dumps(found)}")


def recipe(work: Work) -> Any:
    """The settings as a recipe, for our side. Rows of a step lie in one forward pass on both sides."""
    from luthier.recipe import Recipe

    settings = work.settings
    made = Recipe(name="bench-vision", seed=settings.seed)
    made.model.base, made.model.tuning, made.model.dtype = work.model, "lora", "float32"
    made.model.lora.r, made.model.lora.alpha, made.model.lora.dropout = settings.lora_r, settings.lora_alpha, 0.0
    made.train.epochs, made.train.learning_rate = settings.epochs, settings.learning_rate
    made.train.schedule, made.train.warmup_ratio, made.train.weight_decay = "constant", 0.0, 0.0
    made.train.adam_beta1, made.train.adam_beta2 = 0.9, 0.999
    made.train.max_grad_norm = settings.max_grad_norm
    made.train.batch_size = made.train.micro_batch_size = settings.rows_per_step
    made.train.log_every = 1
    return made
